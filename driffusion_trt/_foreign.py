"""Files that somebody else may have written: JSON read without trust, and text for a terminal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from ._errors import InputError

__all__ = ["is_number", "plain", "read_json"]

_MOST = 1e12  # beyond what any figure of ours can be; sums and ratios of such numbers stay finite


def read_json(path: Path, what: str) -> Any:
    """A file's JSON, without NaN and infinities.

    what: the end of a sentence, "as figures of a machine".

    Raises InputError where the file cannot be read so.
    """
    try:
        return json.loads(path.read_text("utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise InputError(f"{path} cannot be read {what} ({error.strerror})") from error
    except RecursionError as error:
        raise InputError(
            f"{path} cannot be read {what} (lists or objects lie in each other too deep)"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} cannot be read {what} ({plain(str(error))})") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def is_number(value: object, least: float = 0.0, *, whole: bool = False) -> bool:
    """Whether it is a number from `least` to 10^12, an int where `whole`; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return (isinstance(value, int) or math.isfinite(value)) and least <= value <= _MOST


def plain(text: str, most: int = 200) -> str:
    """Without control characters, which a terminal would obey, and no longer than `most`."""
    shown = "".join(one for one in text if one.isprintable())
    return shown if len(shown) <= most else shown[: most - 3] + "..."
