"""The demo's checkpoint as a model folder: three ONNX files with float16 weights and float32 arithmetic."""

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
import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.export import Dim
from transformers import CLIPTextModel

from ..._errors import ModelError
from ..._manifest import MANIFEST, write_manifest
from ...models import get_spec
from ..graph import name_dims, store_half, strip

# The highest opset that ONNX Runtime's CPU provider runs at full speed: from 21 on the exporter
# writes GroupNormalization, which that provider has no kernel for and takes apart into ten
# operators each. Measured interleaved, one thread, a batch of 2: 14.2 ms for the denoiser with
# opset 20, 15.2 ms with 23. Opset 23's Attention operator alone would cost nothing.
OPSET = 20
PARITY = 1e-5  # relative L2 against torch with the same weights


class _TextEncoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(input_ids).last_hidden_state
        return hidden


class _Denoiser(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        out: torch.Tensor = self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


class _VaeDecoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model.decode(latents, return_dict=False)[0]
        return out


@dataclass(frozen=True, slots=True)
class _Network:
    """One network to export: example inputs by name, and which of their sides may vary."""

    name: str
    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    dims: dict[str, dict[int, str]]
    output: str
    output_dims: dict[int, str]
    multiple: int = 1


def _load(checkpoint: Path) -> list[Any]:
    """Text encoder, UNet and autoencoder, their weights rounded to what float16 holds."""
    for part in ("text_encoder", "unet", "vae", "scheduler", "tokenizer"):
        if not (checkpoint / part).is_dir():
            raise ModelError(
                f"{checkpoint} is not a checkpoint of the demo: it has no folder {part!r}; "
                "give the folder that the training wrote, or train again"
            )
    kinds: dict[str, Any] = {
        "text_encoder": CLIPTextModel,
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
    }
    models = [kind.from_pretrained(checkpoint / part) for part, kind in kinds.items()]
    for model in models:
        model.float().eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    return models


def _networks(checkpoint: Path) -> list[_Network]:
    text, unet, vae = _load(checkpoint)
    channels, height, width = get_spec("demo").latent_shape
    length = text.config.max_position_embeddings
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(2, channels, height, width, generator=random)
    sides = {0: "batch", 2: "height", 3: "width"}
    return [
        _Network(
            "text_encoder",
            _TextEncoder(text),
            {"input_ids": torch.randint(text.config.vocab_size, (2, length), generator=random)},
            {"input_ids": {0: "batch"}},
            "last_hidden_state",
            {0: "batch"},
        ),
        _Network(
            "denoiser",
            _Denoiser(unet),
            {
                "sample": latents,
                "timestep": torch.tensor([981.0, 21.0]),
                "encoder_hidden_states": torch.randn(
                    2, length, unet.config.cross_attention_dim, generator=random
                ),
            },
            {"sample": sides, "timestep": {0: "batch"}, "encoder_hidden_states": {0: "batch"}},
            "out_sample",
            sides,
            get_spec("demo").latent_multiple,
        ),
        _Network(
            "vae_decoder",
            _VaeDecoder(vae),
            {"latents": latents},
            {"latents": sides},
            "pictures",
            {0: "batch", 2: "picture_height", 3: "picture_width"},
        ),
    ]


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    """Silence what torch's exporter says of its own inner calls, and of sides that share a name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"# The axis name: \w+ will not be used", UserWarning)
        yield


def _to_onnx(network: _Network) -> onnx.ModelProto:
    dim = {"batch": Dim("batch", min=1, max=64)}
    for side in ("height", "width"):
        dim[side] = network.multiple * Dim(f"{side}_", min=2, max=64)
    shapes = {name: {i: dim[d] for i, d in dims.items()} for name, dims in network.dims.items()}
    with _known_warnings(), torch.no_grad():
        program = torch.onnx.export(
            network.module.eval(),
            args=(),
            kwargs=network.inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(network.inputs),
            output_names=[network.output],
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    name_dims(model, {**network.dims, network.output: network.output_dims})
    strip(model)
    store_half(model)
    return model


def _parity(network: _Network, path: Path) -> float:
    """Largest relative L2 of ONNX Runtime against torch, over batches of 2 and of 1."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (2, 1):
        inputs = {name: value[:batch] for name, value in network.inputs.items()}
        with torch.no_grad():
            wanted = network.module(**inputs).numpy()
        got = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
        worst = max(worst, float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)))
    if not worst < PARITY:
        raise ModelError(
            f"{path.name} differs from torch by {worst:.1e} (relative L2), above {PARITY:.0e}: "
            "this pair of torch and ONNX Runtime versions cannot be used; try the pinned ones"
        )
    return worst


def _versions() -> dict[str, str]:
    modules: tuple[Any, ...] = (torch, diffusers, transformers, onnx, onnxruntime)
    return {module.__name__: str(module.__version__) for module in modules}


def export_demo(checkpoint: Path, output: Path) -> Path:
    """Export the trained demo to a model folder that needs no torch to run.

    Args:
        checkpoint: the diffusers folder that `networks.save_checkpoint` wrote.
        output: the folder to write; a model folder that is there already is replaced.

    Returns:
        `output`, which appears only when it is complete. It holds onnx/text_encoder.onnx
        (input_ids (B, L) int64 to last_hidden_state (B, L, C)), onnx/denoiser.onnx (sample
        (B, 4, h, w), timestep (B,), encoder_hidden_states (B, L, C) to out_sample, all float32)
        and onnx/vae_decoder.onnx (latents, already divided by the manifest's scaling_factor,
        to pictures (B, 3, 4h, 4w) in about [-1, 1]).

    Raises:
        ModelError: `checkpoint` is incomplete, `output` is something else than a model folder,
            or a network's ONNX file does not compute what torch does.
    """
    replaceable = (output / MANIFEST).exists() or (output.is_dir() and not any(output.iterdir()))
    if output.exists() and not replaceable:
        raise ModelError(f"{output} exists and is not a model folder; name another, or remove it")
    networks = _networks(checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.", suffix=".partial") as name:
        folder = Path(name) / output.name
        _write(checkpoint, folder, networks)
        if output.exists():
            shutil.rmtree(output)
        folder.rename(output)
    return output


def _write(checkpoint: Path, folder: Path, networks: list[_Network]) -> None:
    parity = {}
    (folder / "onnx").mkdir(parents=True)
    for network in networks:
        path = folder / "onnx" / f"{network.name}.onnx"
        onnx.save(_to_onnx(network), path)
        onnx.checker.check_model(path, full_check=True)
        parity[network.name] = _parity(network, path)
    for source in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json"):
        (folder / source).parent.mkdir()
        shutil.copyfile(checkpoint / source, folder / source)
    vae = networks[2].module
    assert isinstance(vae, _VaeDecoder)
    spec = get_spec("demo")
    write_manifest(
        folder,
        family="demo",
        precision="float16 weights, float32 arithmetic",
        versions=_versions(),
        shapes={
            "picture": [3, spec.height, spec.width],
            "latents": list(spec.latent_shape),
            "text": list(networks[1].inputs["encoder_hidden_states"].shape[1:]),
        },
        scaling_factor=float(vae.model.config.scaling_factor),
        shift_factor=float(vae.model.config.shift_factor or 0.0),
        parity=parity,
    )
