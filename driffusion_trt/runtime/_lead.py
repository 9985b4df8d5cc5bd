"""The device that leads a call: its networks beside the lanes, text encoders and the VAE, run there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._driver import Device

__all__ = ["current_lead", "led_by", "now_led_by"]


@dataclass(slots=True)
class _Lead:
    device: Device | None


_current: ContextVar[_Lead | None] = ContextVar("lead", default=None)


@contextlib.contextmanager
def led_by(device: Device | None) -> Iterator[None]:
    """In the block this device leads, until `now_led_by` names another; networks take arrays alone."""
    token = _current.set(_Lead(device))
    try:
        yield
    finally:
        _current.reset(token)


def now_led_by(device: Device) -> None:
    """From now on, for the rest of a `led_by`; nothing outside of one."""
    if (lead := _current.get()) is not None:
        lead.device = device


def current_lead() -> Device | None:
    """None where nobody said."""
    return None if (lead := _current.get()) is None else lead.device
