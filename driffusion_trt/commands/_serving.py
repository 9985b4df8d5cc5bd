"""The work of `driffusion-trt serve`: check everything, bind, load, serve."""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import socket
from dataclasses import replace
from importlib.util import find_spec
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .._address import checked, is_remote, listening_at, name_of
from .._errors import InputError, MissingExtraError
from ..engines.manifest import resolve_model
from ..remote import here
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

    for name in (*_LIMITS, "hang_timeout", "max_seconds"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be a number above 0, not {value:g}")
    given = {field: getattr(args, name) for name, field in _LIMITS.items()}
    limits = Limits(**{field: value for field, value in given.items() if value is not None})
    _check_models(args)
    keys, url, proxies = Keys(_keys(args)), _url(args.public_url), _proxies(args)
    own, named = args.host or "127.0.0.1", _allowed(args)
    options = Options(_names(args), limits, keys, _origins(args), public_url=url)
    drain_s = args.drain_timeout
    if drain_s is not None and not drain_s > 0:
        raise InputError(f"--drain-timeout must be above 0, not {drain_s:g}; leave it out to wait for all")
    if args.ray:
        hosts = _hosts(own, _address_of(own), named, bool(keys), console)
        serve_replicas(args, replace(options, hosts=hosts), _how(args), proxies, drain_s, console)
        return
    refuse_without_ray(args)
    folder = None if args.output_dir is None else Path(args.output_dir)
    store = Store(limits.stored_bytes, limits.stored_s, folder)
    with bound(own, 8000 if args.port is None else args.port) as listener:
        host, port = listener.getsockname()[:2]
        options = replace(options, hosts=_hosts(own, host, named, bool(keys), console))
        logged(args.quiet)
        from ..server.admission import OPTIONS, check_options
        from ..server.engine import Engine

        metrics, how = Metrics(), _how(args)
        check_options(**{name: value for name, value in how.items() if name in OPTIONS})
        models = _here(args, console)
        console.note(f"loading {options.names[0]}; the service listens once it is warmed up and measured")
        engine = Engine.load(observer=metrics, **models, **how)
        address = f"{options.names[0]} on {engine.pipe.where}: {listening_at(host, port)}"
        app = make_app(engine, options, store, metrics)
        serve(app, listener, limits, drain_s, proxies, ready=lambda: console.note(address))


def _check_models(args: argparse.Namespace) -> None:
    """Raises InputError for addresses with secrets, and where the one of the model in fp32 is missing."""
    for model in (args.model, args.fp32_model):
        if model is not None and is_remote(model):
            checked(model)
    remote = args.model is not None and is_remote(args.model)
    if remote and args.nan_policy == "retry-fp32" and args.fp32_model is None:
        raise InputError(
            "--nan-policy retry-fp32 needs --fp32-model where --model is an address; give it the address or "
            "folder of the same model in fp32"
        )


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
    said = {name: value for name, value in found.items() if value is not None}
    return {**said, "most_area": None}  # --max-pixels bounds it


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


def _allowed(args: argparse.Namespace) -> tuple[str, ...]:
    if args.allowed_host is None:
        return ()
    names = tuple(name.strip() for name in args.allowed_host.split(","))
    if not all(re.fullmatch(_HOST, name, re.ASCII) or _is_address(name) for name in names):
        given = f"without ports, not {args.allowed_host!r}"
        raise InputError(f"--allowed-host takes names such as pictures.example.org, {given}")
    return names


def _hosts(own: str, address: str, named: tuple[str, ...], keyed: bool, console: Console) -> tuple[str, ...]:
    """Names that it goes by, none for any. A page that is led to this machine by its own name has no key.

    own: what it is to listen at, however it is spelt. address: what that was found to be.
    """
    if keyed:
        return named
    if _loopback(address):
        return (*_LOOPBACK, own, address, *named)
    console.warn(
        f"whoever can reach {address} can use this service, which asks for no key; give --api-key-file, or "
        "leave out --host"
    )
    return named


def _loopback(address: str) -> bool:
    found = ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback


def _address_of(host: str) -> str:
    """The first that a listener would take."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise InputError(f"--host {host} has no address ({error.strerror}); choose another one") from error
    return str(found[0][4][0])


def _is_address(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ip_address(host))
    return False


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
