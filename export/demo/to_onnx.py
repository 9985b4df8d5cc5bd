"""A demo's checkpoint as a model folder: ONNX files with float16 weights and float32 arithmetic."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
import transformers

from ..._errors import ModelError
from ..._manifest import MANIFEST, write_manifest
from ...models import get_spec
from ..checkpoint import Checkpoint, read_checkpoint
from ..families import networks_of
from ..graph import name_dims, store_half, strip
from ..load import load_module
from ..manifest import settings
from ..network import Network
from ..parity import relative_l2, worst_of

# The highest opset that ONNX Runtime's CPU provider runs at full speed: from 21 on the exporter
# writes GroupNormalization, which that provider has no kernel for and takes apart into ten
# operators each. Measured interleaved, one thread, a batch of 2: 14.2 ms for the denoiser with
# opset 20, 15.2 ms with 23. Opset 23's Attention operator alone would cost nothing.
OPSET = 20
PARITY = 1e-5  # relative L2 against torch with the same weights


@dataclass(frozen=True, slots=True)
class _Traced:
    """One network to export, with its module in float32 and weights that float16 holds."""

    network: Network
    module: torch.nn.Module

    def inputs(self, small: bool) -> dict[str, torch.Tensor]:
        """Random ones; the latents have the trained size or, small, a flat one."""
        return self.network.random_inputs(self.network.sizes(small), int(small))


def _networks(checkpoint: Checkpoint) -> list[_Traced]:
    traced = []
    for network in networks_of(checkpoint):
        module: Any = load_module(network.component, torch.float32)
        module.requires_grad_(False)
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())
        traced.append(_Traced(network, network.wrap(module, torch.float32).eval()))
    return traced


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    """Silence what torch's exporter says of its own inner calls, and of sides that share a name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used", UserWarning)
        yield


def _to_onnx(traced: _Traced) -> onnx.ModelProto:
    network = traced.network
    with _known_warnings(), torch.no_grad():
        program = torch.onnx.export(
            traced.module,
            args=(),
            kwargs=traced.inputs(small=False),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=network.dynamic_shapes(),
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    shapes = {**network.inputs, **network.outputs}
    name_dims(
        model,
        {
            name: {i: side for i, side in enumerate(shape) if isinstance(side, str)}
            for name, shape in shapes.items()
        },
    )
    strip(model)
    store_half(model)
    return model


def _parity(traced: _Traced, path: Path) -> float:
    """Largest relative L2 of ONNX Runtime against torch, over a batch of two and one flat picture."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    figures = []
    for small in (False, True):
        inputs = traced.inputs(small)
        with torch.no_grad():
            out = traced.module(**inputs)
        outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        for wanted, got in zip(out if isinstance(out, tuple) else (out,), outputs, strict=True):
            figures.append(relative_l2(got, wanted.numpy()))
    worst = worst_of(figures)
    if not worst < PARITY:
        raise ModelError(
            f"{path.name} differs from torch by {worst:.1e} (relative L2), above {PARITY:.0e}: "
            "this pair of torch and ONNX Runtime versions cannot be used; try the pinned ones"
        )
    return worst


def _versions() -> dict[str, str]:
    modules: tuple[Any, ...] = (torch, diffusers, transformers, onnx, onnxruntime)
    return {module.__name__: str(module.__version__) for module in modules}


def export_demo(checkpoint: Path, output: Path, family: str = "demo") -> Path:
    """Export a trained demo to a model folder that needs no torch to run.

    Args:
        checkpoint: the diffusers folder that the training wrote.
        output: the folder to write; a model folder that is there already is replaced.
        family: "demo", "demo-xl" or "demo-sd3".

    Returns:
        `output`, which appears only when it is complete. It holds the ONNX files of `networks_of`, all
        float32 at their surface: text encoders, denoiser, and the autoencoder's two halves.

    Raises:
        ModelError: `checkpoint` is incomplete, `output` is something else than a model folder,
            or a network's ONNX file does not compute what torch does.
    """
    replaceable = (output / MANIFEST).exists() or (output.is_dir() and not any(output.iterdir()))
    if output.exists() and not replaceable:
        raise ModelError(f"{output} exists and is not a model folder; name another, or remove it")
    read = read_checkpoint(checkpoint, get_spec(family))
    networks = _networks(read)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.", suffix=".partial") as name:
        folder = Path(name) / output.name
        _write(read, folder, networks)
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
    return output


def _write(checkpoint: Checkpoint, folder: Path, networks: list[_Traced]) -> None:
    parity = {}
    (folder / "onnx").mkdir(parents=True)
    for traced in networks:
        name = traced.network.name
        path = folder / "onnx" / f"{name}.onnx"
        onnx.save(_to_onnx(traced), path)
        onnx.checker.check_model(path, full_check=True)
        parity[name] = _parity(traced, path)
    tokenizers = [f"{checkpoint.tokenizer(name).name}/tokenizer.json" for name in checkpoint.text_encoders]
    for source in (*tokenizers, "scheduler/scheduler_config.json"):
        (folder / source).parent.mkdir()
        shutil.copyfile(checkpoint.folder / source, folder / source)
    write_manifest(
        folder,
        family=checkpoint.spec.family,
        precision="float16 weights, float32 arithmetic",
        versions=_versions(),
        parity=parity,
        **settings(checkpoint),
    )
