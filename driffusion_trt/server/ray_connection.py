"""A cluster of Ray while a service is on it, and its end, also where signals bring that about."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray import serve

from .._errors import DriffusionError, InputError

__all__ = ["APP", "connected", "quiet"]

APP = "driffusion-trt"
_CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")  # the name and namespace that Ray Serve gives it
_OF_PROXIES = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "driffusion_trt.server.ray_front.middlewares",
    # Else a proxy gives all to the replicas of its own node or zone, as long as they take it.
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
    "RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "0",  # which does not have the former
}
_AT_ONCE_S = 5.0  # for Ray Serve to hear that it is to end

# Published without types.
_serve_down: Any = serve.shutdown
_ray_down: Any = ray.shutdown


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Nothing of what Ray prints to stdout about its nodes; this command says what matters on stderr."""
    if verbose:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def connected(address: str | None, trusted: Sequence[str], verbose: bool) -> Iterator[threading.Event]:
    """On a cluster, whose Ray Serve is taken down at the end; the event is set by a signal, see below.

    trusted: addresses and networks whose X-Forwarded-For and -Proto its proxies believe.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that begins here
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning of what will change
    _connect(address, trusted, verbose)
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if _served_already():
            raise InputError(
                "Ray Serve is at work on this cluster already, with ports and answers of its own; end it "
                "with `serve shutdown`, or name another --ray-address"
            )
        with _ended_by_signals() as ended:
            try:
                yield ended
            finally:
                _serve_down()
    finally:
        _ray_down()


def _of_proxies(trusted: Sequence[str]) -> dict[str, str]:
    """Variables of Ray's proxies. They believe who is named; uvicorn would believe this machine's clients."""
    return {**_OF_PROXIES, "FORWARDED_ALLOW_IPS": ",".join(trusted) or "nobody"}


def _connect(address: str | None, trusted: Sequence[str], verbose: bool) -> None:
    common: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.WARNING,
        "namespace": APP,
        "runtime_env": {"env_vars": _of_proxies(trusted)},
    }
    try:
        try:
            ray.init(address=address or "auto", **common)
        except ConnectionError:
            if address is not None:
                raise
            ray.init(address="local", include_dashboard=False, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = address or "this machine"
        raise DriffusionError(
            f"there is no cluster of Ray at {where} ({error}); start one with `ray start`, or say "
            "--ray-address local"
        ) from error


def _served_already() -> bool:
    try:
        ray.get_actor(_CONTROLLER[0], namespace=_CONTROLLER[1])
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[threading.Event]:
    """Set by SIGTERM and Ctrl-C, the first of which also raises KeyboardInterrupt.

    The second one ends the process in a few seconds. Ray Serve is told to end before: it belongs to no
    process, and would go on without this one.
    """
    ended = threading.Event()

    def told(number: int, frame: Any) -> None:
        if not ended.is_set():
            ended.set()
            raise KeyboardInterrupt
        # In a thread, since the call that was interrupted may hold what this one needs.
        down = threading.Thread(target=_serve_down, daemon=True)
        down.start()
        down.join(_AT_ONCE_S)
        os._exit(128 + number)

    before = {one: signal.signal(one, told) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
