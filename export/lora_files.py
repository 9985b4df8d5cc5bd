"""LoRA files (2106.09685), seen from outside: which form they have and which networks they change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from .._errors import InputError
from ..models import ModelSpec
from .parts import parts_of
from .weights import read_header

__all__ = ["KOHYA", "Lora", "check_loras", "is_kohya", "touching"]

Lora = tuple[Path, float]  # a file, and how much of it

# What kohya's trainer puts before the names of layers, by folder of the checkpoint.
KOHYA = {
    "unet": ("lora_unet_",),
    "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
# What is in a name that one of the two forms gives to a tensor.
_KINDS = (".alpha", ".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora_magnitude_vector")
_KINDS_OLD = (".lora.down.", ".lora.up.", "_lora.down.", "_lora.up.", ".lora_linear_layer.")


def is_kohya(names: Iterable[str]) -> bool:
    """Whether these are names of kohya's trainer: "lora_unet_down_blocks_0_…"."""
    return all(name.startswith("lora_") for name in names)


def _prefixes(part: str, spec: ModelSpec) -> tuple[str, ...]:
    # diffusers converts kohya's names for the two kinds of UNet only.
    return (f"{part}.", *(KOHYA.get(part, ()) if spec.architecture != "sd3" else ()))


def touching(loras: Iterable[Lora], part: str, spec: ModelSpec) -> list[Lora]:
    """The LoRAs that change the network in this folder of a checkpoint."""
    prefixes = _prefixes(part, spec)
    return [one for one in loras if any(name.startswith(prefixes) for name in read_header(one[0]))]


def check_loras(loras: Sequence[tuple[object, object]], spec: ModelSpec) -> tuple[Lora, ...]:
    """The LoRAs, once it is seen that they can be ones of this family.

    Raises:
        InputError: a file is missing, is no safetensors file or no LoRA of the family, or a scale is
            no finite number.
        ModelError: a file is cut short.
    """
    names = [part.name for part in parts_of(spec) if part.name not in ("vae", "text_encoder_3")]
    known = tuple(prefix for name in names for prefix in _prefixes(name, spec))
    checked = []
    for given, scale in loras:
        path = Path(str(given))
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            raise InputError(f"the scale of LoRA {path} must be a finite number, not {scale!r}")
        if not path.is_file() or path.suffix != ".safetensors":
            what = "is no safetensors file" if path.exists() else "does not exist"
            raise InputError(
                f"LoRA {path} {what}; give a .safetensors file in the form of diffusers or of kohya"
            )
        _check_names(path, read_header(path), known, spec)
        checked.append((path.resolve(), float(scale)))
    return tuple(checked)


def _check_names(path: Path, names: Iterable[str], known: tuple[str, ...], spec: ModelSpec) -> None:
    for name in sorted(names):
        if not name.startswith(known):
            raise InputError(
                f"LoRA {path} is not one for {spec.family}: it has {name!r}, and names must begin with "
                f"{', '.join(known)}; take a LoRA of this family, in the form of diffusers or of kohya"
            )
        if not any(kind in name for kind in (*_KINDS, *_KINDS_OLD)):
            raise InputError(
                f"LoRA {path} has {name!r}, which is no matrix of a plain LoRA (LyCORIS and DoRA files "
                "have such); fuse it with the tool that made it, and build the fused checkpoint"
            )
