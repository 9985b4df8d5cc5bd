"""What runs in processes of their own (`driffusion_trt._child`): all that needs torch, and its gigabytes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..models import get_spec
from .checkpoint import Checkpoint, read_checkpoint
from .families import networks_of
from .load import quiet
from .lora_files import Lora, touching
from .network import Network
from .onnx_export import export_network
from .parity import check_parity
from .tokenizer import write_tokenizer

__all__ = ["export", "verify"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Report = Callable[..., None]


def export(*, names: Sequence[str], output: str, precision: str, report: Report, **where: Any) -> None:
    """Write the networks and tokenizers of these names into the model folder `output`.

    Reports `name` when one is begun, and `name` and `files` when it is there.
    """
    checkpoint, loras = _open(**where)
    quiet()
    networks = {network.name: network for network in networks_of(checkpoint)}
    for name in names:
        report(name=name)
        if name in networks:
            network = networks[name]
            dtype = DTYPES[checkpoint.precision_of(network.component, precision)]
            path = export_network(network, dtype, _of(network, loras, checkpoint), Path(output) / "onnx")
            files = [path, *path.parent.glob(f"{path.name}.data")]
        else:
            files = [_tokenizer(checkpoint, name, networks, Path(output))]
        gc.collect()  # exported programs hold on to themselves
        report(name=name, files=[str(file) for file in files])


def verify(*, names: Sequence[str], output: str, precision: str, report: Report, **where: Any) -> None:
    """Compare the networks of these names with torch. Reports `name`, then `name` and `parity`."""
    checkpoint, loras = _open(**where)
    quiet()
    for network in networks_of(checkpoint):
        if network.name in names:
            report(name=network.name)
            path = Path(output) / "onnx" / f"{network.name}.onnx"
            own = checkpoint.precision_of(network.component, precision)
            report(
                name=network.name, parity=check_parity(network, path, own, _of(network, loras, checkpoint))
            )


def _open(
    *, family: str, folder: str, loras: Sequence[Sequence[Any]], allow_pickle: bool, skip: Sequence[str]
) -> tuple[Checkpoint, list[Lora]]:
    checkpoint = read_checkpoint(Path(folder), get_spec(family), allow_pickle=allow_pickle, skip=skip)
    return checkpoint, [(Path(path), float(scale)) for path, scale in loras]


def _of(network: Network, loras: Sequence[Lora], checkpoint: Checkpoint) -> list[Lora]:
    return touching(loras, network.component.part.name, checkpoint.spec)


def _tokenizer(checkpoint: Checkpoint, name: str, networks: dict[str, Network], output: Path) -> Path:
    encoder = name.replace("tokenizer", "text_encoder")
    shape = networks[encoder].inputs["input_ids"]
    return write_tokenizer(
        checkpoint.tokenizer(encoder),
        networks[encoder].component,
        int(shape[1]),
        output / name / "tokenizer.json",
    )
