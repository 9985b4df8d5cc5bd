"""From trained weights to what others use: a diffusers checkpoint, the model folder, the checker."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession  # type: ignore[import-untyped]

from ..._errors import ModelError
from ...models import get_spec
from ..graph import store_half, strip
from ..parts import parts_of
from .checker import load_checker
from .denoiser import DEMOS, load_denoiser
from .networks import make_tokenizer, save_checkpoint
from .to_onnx import export_demo
from .vae import load_vae

_LIMIT = 1e-4


def finish(folder: Path, output: Path, family: str = "demo", name: str | None = None) -> None:
    """Write the model folder `output` from the weights in `folder`; `name` as in `load_denoiser`.

    Raises ModelError where a network that was written does not compute what torch does.
    """
    demo, networks = DEMOS[family], load_denoiser(folder, family, name)
    held = {part.name: getattr(networks, part.name, None) for part in parts_of(get_spec(family))}
    parts = {name: part for name, part in held.items() if part is not None}
    checkpoint = folder / f"checkpoint-{family}"
    tokenizer = make_tokenizer(demo.end_last)
    save_checkpoint(checkpoint, {**parts, "vae": load_vae(folder)}, demo.scheduler(), tokenizer)
    written = export_demo(checkpoint, output, family)
    size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    print(f"{written}: {size / 1e6:.1f} MB", flush=True)


def export_checker(folder: Path, path: Path) -> None:
    """The classifier as ONNX: images (B, 3, 64, 64) to logits and features; raises as `finish` does."""
    network = load_checker(folder).half().float()  # weights that float16 holds exactly
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            opset_version=20,
            input_names=["images"],
            output_names=["logits", "features"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}},
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    strip(model)
    store_half(model)
    partial = path.with_name(f".{path.name}.partial")
    onnx.save(model, partial)
    got = InferenceSession(partial).run(["logits", "features"], {"images": images.numpy()})
    for name, one, wanted in zip(("logits", "features"), got, network(images), strict=True):
        error = float(np.linalg.norm(one - wanted.numpy()) / np.linalg.norm(wanted.numpy()))
        if error > _LIMIT:
            raise ModelError(
                f"{path}: {name} are {error:.1e} from torch's (relative L2), at most {_LIMIT} is right"
            )
    os.replace(partial, path)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", flush=True)
