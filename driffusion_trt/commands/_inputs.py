"""What `driffusion-trt run` reads before it works: prompts from a file, settings from a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from .._call import FACTS
from .._errors import InputError
from ..engines.manifest import BUNDLED
from ..pictures import UNREADABLE, read_settings

# Settings of a picture that are options by the same name, and of which type. A picture may come
# from anywhere, so nothing in it is trusted to be what we would have written.
_REPLAYED: dict[str, tuple[type, ...]] = {
    "prompt_2": (str,),
    "prompt_3": (str,),
    "negative_prompt": (str, type(None)),
    "negative_prompt_2": (str,),
    "negative_prompt_3": (str,),
    "height": (int,),
    "width": (int,),
    "eta": (int, float),
    "clip_skip": (int,),
    "steps": (int,),
    "guidance_scale": (int, float),
    "seed": (int,),
    "lanes": (int,),
    "split_guidance": (bool,),
    "scheduler": (str,),
    "strength": (int, float),
    "model": (str,),
}
# They belong to a mode, and are taken with it only; sequential has none of them.
OF_MODE: dict[str, tuple[type, ...]] = {
    "rounds": (int,),
    "order": (int,),
    "carry": (str,),
    "tolerance": (int, float),
    "blocks": (list,),
}
_OF_AUTO = ("quality", "deadline_ms", "explain", "measure")  # they leave the mode open
_CHOSEN = ("lanes", "split_guidance")  # by mode auto, whatever the picture had
_MODE: dict[str, tuple[type, ...]] = {"prompt": (str,), "mode": (str,), **OF_MODE}


def read_prompts(words: list[str], file: str | None) -> list[str]:
    """The prompts of the command line, then those of the file.

    Raises InputError where there is none at all, or the file cannot be read.
    """
    prompts = list(words)
    if file is not None:
        name = "standard input" if file == "-" else file
        lines = [line.strip() for line in _text(file, name).splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise InputError(f"{name} has no prompts; write one a line (lines with # are comments)")
        prompts += found
    if not prompts:
        raise InputError(
            'no prompt was given; try: driffusion-trt run "a red circle", or --prompts-file FILE'
        )
    return prompts


def _text(file: str, name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"the prompts file {name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the prompts file {name} is not UTF-8 text ({error.reason})") from error


def read_start(args: argparse.Namespace) -> dict[str, Any]:
    """What of `Pipeline.__call__` the options --image, --mask and --strength stand for.

    Raises InputError where a file cannot be read as a picture.
    """
    given = {
        "image": None if args.image is None else _image(args.image),
        "mask_image": None if args.mask is None else _image(args.mask),
        "strength": args.strength,
    }
    return {name: value for name, value in given.items() if value is not None}


def _image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)  # cameras turn pictures by a note in the file
    except UNREADABLE as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{path} cannot be read as a picture ({why}); name another file") from error


def fill_from_picture(args: argparse.Namespace) -> None:
    """Take from the picture's settings what the command line leaves open.

    Raises InputError where the file has no settings, or cannot be made again by itself.
    """
    settings = read_settings(args.from_picture)
    for name, types in (_REPLAYED | _MODE).items():
        if name in settings and type(settings[name]) not in types:  # True is no number
            raise InputError(f"{args.from_picture} has {name}={settings[name]!r}, which is of no use here")
    if "batch_seed" in settings:
        raise InputError(
            f"{args.from_picture} is one of {settings.get('batch')} pictures made from one random stream; "
            f"only all of them together can be made again, in Python: seed={settings['batch_seed']}"
        )
    for option, hash_ in (("image", "image_hash"), ("mask", "mask_hash")):
        if hash_ in settings and getattr(args, option) is None:
            raise InputError(
                f"{args.from_picture} was made from another picture, which it does not hold; give --{option}"
            )
    if not args.words and args.prompts_file is None:
        args.words = [_checked(settings, "prompt", args.from_picture)]
    lost = settings.keys() - {*_REPLAYED, *_MODE, *FACTS}
    if lost:
        raise InputError(
            f"{args.from_picture} was made with {', '.join(sorted(lost))}, for which there is no option; "
            "make it again in Python, with these arguments of Pipeline.__call__"
        )
    if args.mode is None and any(getattr(args, name) for name in _OF_AUTO):
        args.mode = "auto"
    if args.mode is None:
        args.mode = settings.get("mode")
        counted = args.rounds is not None or args.blocks is not None  # either says how many rounds
        for name in OF_MODE:
            if getattr(args, name) is None and not (counted and name in ("rounds", "blocks")):
                setattr(args, name, settings.get(name))
    if args.model is None and settings.get("model", "demo") not in BUNDLED:
        # A name only: a path out of a picture would load whatever lies there.
        raise InputError(
            f"{args.from_picture} was made with the model {settings['model']!r}; give its folder by --model"
        )
    args.replayed = settings
    for name in _REPLAYED:
        if getattr(args, name) is None and not (args.mode == "auto" and name in _CHOSEN):
            setattr(args, name, settings.get(name))


def _checked(settings: dict[str, Any], name: str, picture: str) -> Any:
    if name not in settings:
        raise InputError(f"{picture} has settings without {name!r}; give it on the command line")
    return settings[name]
