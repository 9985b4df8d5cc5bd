"""The work of `driffusion-trt serve`: check everything, bind, load, serve."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .._errors import InputError, MissingExtraError
from ..engines.manifest import resolve_model
from ..remote import here, is_remote, name_of
from ._console import Console
from ._serving_ray import refuse_without_ray, serve_replicas

_NEEDED = {
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
}
_MOST_S = 600.0
_HOST = r"[\w-]+(\.[\w-]+)*"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LIMITS = {
    "max_prompt_chars": "prompt_chars",
    "max_images": "images",
    "max_pixels": "pixels",
    "max_steps": "steps",
    "max_body_bytes": "body_bytes",
    "max_upload_bytes": "upload_bytes",
    "max_upload_pixels": "upload_pixels",
    "max_connections": "connections",
    "max_held_bytes": "held_bytes",
    "header_timeout": "header_s",
    "body_timeout": "body_s",
    "stall_timeout": "stall_s",
    "read_rate": "read_rate",
    "store_bytes": "stored_bytes",
    "store_seconds": "stored_s",
}


def serve_pictures(args: argparse.Namespace, console: Console) -> None:
    """Serve until a signal comes. Raises InputError before any work, and what `Engine.load` raises."""
    for name, package in _NEEDED.items():
        if find_spec(name) is None:
            raise MissingExtraError(package, "serve")
    from ..server.app import Options, make_app
    from ..server.edge import Keys
    from ..server.limits import Limits
    from ..server.metrics import Metrics
    from ..server.serving import bound, logged, serve
    from ..server.store import Store

    given = {field: getattr(args, name) for name, field in _LIMITS.items()}
    limits = Limits(**{field: value for field, value in given.items() if value is not None})
    keys, url, proxies = Keys(_keys(args)), _url(args.public_url), _proxies(args)
    options = Options(_names(args), limits, keys, _origins(args), _hosts(args, bool(keys)), url)
    drain_s = args.drain_timeout
    if drain_s is not None and not drain_s > 0:
        raise InputError(f"--drain-timeout must be above 0, not {drain_s:g}; leave it out to wait for all")
    if args.ray:
        serve_replicas(args, options, _how(args), drain_s, console)
        return
    refuse_without_ray(args)
    folder = None if args.output_dir is None else Path(args.output_dir)
    store = Store(limits.stored_bytes, limits.stored_s, folder)
    with bound(args.host or "127.0.0.1", 8000 if args.port is None else args.port) as listener:
        logged()
        if args.quiet:
            logging.getLogger("driffusion_trt").setLevel(logging.WARNING)
        from ..server.engine import Engine

        metrics = Metrics()
        engine = Engine.load(observer=metrics, **_here(args, console), **_how(args))
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        console.note(f"{options.names[0]} on {engine.pipe.where}: http://{shown}:{port}/")
        serve(make_app(engine, options, store, metrics), listener, limits, drain_s, proxies)


def _here(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The models of `Engine.load`, fetched to this machine where they are elsewhere."""
    given = {"model": args.model or "demo", "fp32_model": args.fp32_model}
    with console.progress(1000) as tick:
        return {
            name: here(model, lambda done, total, file: tick(1000 * done // max(1, total), file))
            for name, model in given.items()
            if model is not None
        }


def _how(args: argparse.Namespace) -> dict[str, Any]:
    """What of `Engine.load` was said."""
    found = {
        "devices": args.devices,
        "queue": args.queue,
        "share": args.share,
        "hang_s": args.hang_timeout,
        "most_s": _MOST_S if args.max_seconds is None else args.max_seconds,
        "nan_policy": args.nan_policy,
        "cuda_graphs": False if args.no_cuda_graphs else None,
        "peer_copies": False if args.no_peer_copies else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _names(args: argparse.Namespace) -> tuple[str, ...]:
    model = args.model or "demo"
    if args.served_name is None:
        return (name_of(model) if is_remote(model) else resolve_model(model).resolve().name,)
    names = tuple(name.strip() for name in args.served_name.split(","))
    if not all(names):
        raise InputError(f"--served-name {args.served_name!r} has an empty name in it")
    return names


def _keys(args: argparse.Namespace) -> list[str]:
    keys = [] if args.api_key is None else [args.api_key]
    if args.api_key_file is not None:
        try:
            lines = Path(args.api_key_file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the file of API keys {args.api_key_file} cannot be read ({error})") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise InputError(f"{args.api_key_file} has no API keys; write one a line")
        keys += found
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key or not key:
            raise InputError(
                "an API key must be printable ASCII without spaces, since it is sent in a header"
            )
    return keys


def _origins(args: argparse.Namespace) -> list[str]:
    found = [] if args.cors_origin is None else [one.strip() for one in args.cors_origin.split(",")]
    for one in found:
        parts = urlsplit(one)
        if one != "*" and (
            parts.scheme not in ("http", "https") or f"{parts.scheme}://{parts.netloc}" != one
        ):
            raise InputError(f"--cors-origin takes origins such as https://example.org, or *, not {one!r}")
    return found


def _hosts(args: argparse.Namespace, keyed: bool) -> tuple[str, ...]:
    """Names that the service goes by. A page that is led to this machine by its name has no key."""
    own, given = args.host or "127.0.0.1", args.allowed_host
    if given is None:
        return () if keyed or not _loopback(own) else (*_LOOPBACK, own)
    names = tuple(name.strip() for name in given.split(","))
    if not all(re.fullmatch(_HOST, name, re.ASCII) or _address(name) for name in names):
        raise InputError(
            f"--allowed-host takes names such as pictures.example.org, without ports, not {given!r}"
        )
    return (*names, *(_LOOPBACK if _loopback(own) else ()))


def _loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> IPv4Address | IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ip_address(host)
    return None


def _proxies(args: argparse.Namespace) -> list[str]:
    found = [] if args.trusted_proxy is None else [one.strip() for one in args.trusted_proxy.split(",")]
    for one in found:
        try:
            ip_network(one)
        except ValueError as error:
            raise InputError(
                f"--trusted-proxy takes addresses and networks such as 10.0.0.0/8, not {one!r} ({error})"
            ) from error
    return found


def _url(given: str | None) -> str:
    if given is not None and urlsplit(given).scheme not in ("http", "https"):
        raise InputError(f"--public-url must begin with http:// or https://, not {given!r}")
    return given or ""
