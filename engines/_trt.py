"""What both flavours of TensorRT share: what they say, and the one funnel that their calls go through.

TensorRT tells why a call failed only to its logger; the call itself returns None or False.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .._errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["Messages", "check", "make_logger", "sizes"]

T = TypeVar("T")
_KEPT = 200  # messages of each kind; a build at verbose level has many thousand


class Messages:
    """Everything that TensorRT said, by severity; `on_message` is told each as it comes."""

    def __init__(self, on_message: Callable[[str, str], None] | None = None) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self._on_message = on_message

    def add(self, severity: str, text: str) -> None:
        """Called from TensorRT's own threads."""
        kept = {"INTERNAL_ERROR": self.errors, "ERROR": self.errors, "WARNING": self.warnings}.get(severity)
        if kept is not None and len(kept) < _KEPT:
            kept.append(text)
        if self._on_message is not None:
            self._on_message(severity.lower(), text)

    def words(self) -> str:
        """The errors so far, whole, in the order they came, each once."""
        return "; ".join(dict.fromkeys(text.strip() for text in self.errors)) or "it gave no reason"


def make_logger(module: Any, messages: Messages) -> Any:
    """A TensorRT logger that hands every message on; it must outlive what is made with it."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            messages.add(severity.name, msg)

    return Logger()


def check(value: T | None, what: str, messages: Messages) -> T:
    """`value`, unless it is None or False, by which TensorRT says that `what` failed.

    Raises:
        EngineError: with every error that TensorRT has told its logger.
    """
    if value is None or value is False:
        raise EngineError(f"{what} failed: {messages.words()}")
    return value


def sizes(dims: trt.Dims) -> tuple[int, ...]:
    """TensorRT's shape as ours; -1 stands for a side that varies."""
    return tuple(int(dims[at]) for at in range(len(dims)))
