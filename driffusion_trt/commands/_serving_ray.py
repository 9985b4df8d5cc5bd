"""`serve --ray`: its options, and what of the other ones means nothing there."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._address import is_remote
from .._errors import InputError, MissingExtraError
from ._console import Console
from ._options import DEMOS, number, option, whole

if TYPE_CHECKING:
    from ..server.app import Options
    from ..server.ray_scale import Scale

_OWN = {
    "ray_address": "--ray-address",
    "replicas": "--replicas",
    "gpus_per_replica": "--gpus-per-replica",
    "cpus_per_replica": "--cpus-per-replica",
    "target_requests": "--target-requests",
    "scale_up_after": "--scale-up-after",
    "scale_down_after": "--scale-down-after",
    "proxies": "--proxies",
}
_HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"
_NOT_THERE = {
    "devices": "--devices is of one process; say --gpus-per-replica or --cpus-per-replica",
    "header_timeout": "--header-timeout is of our own listener, and with --ray Ray's listens",
    "stall_timeout": "--stall-timeout is of our own listener, and with --ray Ray's listens",
    "max_connections": "--max-connections is of our own listener, and with --ray Ray's listens",
    "read_rate": "--read-rate is of our own listener, and with --ray Ray's listens",
}


def add_options(group: argparse._ArgumentGroup) -> None:
    """The group of the command's help."""
    group.add_argument("--ray", action="store_true", help="serve on a cluster of Ray, by Ray Serve")
    option(group, "--ray-address", "ADDRESS", "auto, local, or HOST:PORT (default: a cluster, else local)")
    option(group, "--replicas", "N[:M]", "how many, or at least N and at most M by the load (default: 1)")
    option(group, "--gpus-per-replica", "N", "GPUs of one node that a replica has (default: 0)", type=whole)
    option(group, "--cpus-per-replica", "N", "CPUs, and without GPUs its lanes (default: 1)", type=whole)
    option(
        group,
        "--target-requests",
        "N",
        "at a replica, waiting ones too; more add replicas (default: measured)",
        type=number,
    )
    option(group, "--scale-up-after", "S", "seconds of more load than that (default: 30)", type=number)
    option(group, "--scale-down-after", "S", "seconds of less (default: 600)", type=number)
    option(
        group,
        "--proxies",
        "NAME",
        "listen on the head node, or every node with replicas (default: head)",
        names=("head", "every"),
    )


def refuse_without_ray(args: argparse.Namespace) -> None:
    """Raises InputError for options that mean something with --ray only."""
    for name, spelt in _OWN.items():
        if getattr(args, name) is not None:
            raise InputError(f"{spelt} is for replicas on a cluster; add --ray")


def scale_of(args: argparse.Namespace, proxies: Sequence[str] = ()) -> Scale:
    """Raises InputError for what cannot be, and MissingExtraError where Ray is not installed."""
    for name, why in _NOT_THERE.items():
        if getattr(args, name, None) is not None:
            raise InputError(why)
    found: dict[str, Any] = {
        "address": args.ray_address,
        "host": args.host or "127.0.0.1",
        "port": _port(args.port),
        "replicas": _replicas(args.replicas or "1"),
        "gpus": _least(args.gpus_per_replica, 0, "--gpus-per-replica"),
        "cpus": _least(args.cpus_per_replica, 1, "--cpus-per-replica"),
        "target": _above(args.target_requests, 0.0, "--target-requests"),
        "up_s": _above(args.scale_up_after, 0.0, "--scale-up-after"),
        "down_s": _above(args.scale_down_after, 0.0, "--scale-down-after"),
        "proxies": args.proxies,
        "trusted": tuple(proxies),
    }
    if os.environ.get(_HA_PROXY) == "1":
        raise InputError(
            f"{_HA_PROXY}=1 is set, and this service is for Ray Serve's own proxy, which answers for "
            "replicas that are lost; unset it"
        )
    if found["proxies"] not in (None, "head", "every"):
        raise InputError(f"--proxies is head or every, not {found['proxies']!r}")
    for name in ("ray", "fsspec"):
        if find_spec(name) is None:
            raise MissingExtraError(name, "ray")
    from ..server.ray_scale import Scale

    return Scale(**{name: value for name, value in found.items() if value is not None})


def serve_replicas(
    args: argparse.Namespace,
    options: Options,
    how: Mapping[str, Any],
    proxies: Sequence[str],
    drain_s: float | None,
    console: Console,
) -> None:
    """Serve on a cluster until a signal comes. Raises as `serve_on_ray` does."""
    scale = scale_of(args, proxies)
    from ..server.ray_app import Recipe
    from ..server.ray_cluster import serve_on_ray

    if args.fp32_model is not None:
        how = {**how, "fp32_model": _everywhere(args.fp32_model)}
    output = None if args.output_dir is None else str(Path(args.output_dir).resolve())
    recipe = Recipe(_everywhere(args.model or "demo"), options, how, output, args.quiet)
    serve_on_ray(recipe, scale, drain_s, console.note, args.verbose)


def _everywhere(model: str) -> str:
    """The same model for replicas, which have working folders of their own."""
    folder = not is_remote(model) and model not in DEMOS and Path(model).is_dir()
    return str(Path(model).resolve()) if folder else model


def _port(port: int | None) -> int:
    if port is None:
        return 8000
    if not 0 < port < 65536:
        raise InputError(f"with --ray --port is a number from 1 to 65535, not {port}")
    return port


def _replicas(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})(?::(\d{1,4}))?", text)
    least = int(match[1]) if match else 0
    most = int(match[2] or least) if match else 0
    if not 1 <= least <= most:
        raise InputError(f"--replicas is a number from 1 on, or two such as 1:8, not {text!r}")
    return least, most


def _least(value: int | None, least: int, name: str) -> int | None:
    if value is not None and value < least:
        raise InputError(f"{name} must be at least {least}, not {value}")
    return value


def _above(value: float | None, bound: float, name: str) -> float | None:
    if value is not None and not bound < value < float("inf"):
        raise InputError(f"{name} must be a number above {bound:g}, not {value:g}")
    return value
