"""`driffusion-trt serve`: its options. The work is in `_serving`, which loads what is heavy."""

from __future__ import annotations

import argparse

from ._console import Console
from ._options import NAN_POLICIES, devices, number, option, whole
from ._serving_ray import add_options as _ray

DESCRIPTION = "Serve pictures over HTTP, in the form of OpenAI's API, with a web page at / and metrics."
EPILOG = """\
endpoints:
  POST /v1/images/generations   pictures from a prompt; "stream": true shows them as they are made
  POST /v1/images/edits         pictures from a picture, or a masked part of one made anew
  GET  /v1/models  /healthz  /readyz  /metrics  /openapi.json  /

SIGTERM: no more requests are taken, those that were are answered, then the process ends.

example:
  driffusion-trt serve --port 8000 --devices 2 --api-key-file keys.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _where(parser.add_argument_group("where"))
    _what(parser.add_argument_group("what"))
    _who(parser.add_argument_group("who"))
    _bounds(parser.add_argument_group("bounds of one request"))
    _others(parser.add_argument_group("bounds of the service"))
    _ray(parser.add_argument_group("on a cluster"))
    parser.add_argument("-q", "--quiet", action="store_true", help="log requests and failures only")
    parser.add_argument("-v", "--verbose", action="store_true", help="print tracebacks of errors")


def _where(group: argparse._ArgumentGroup) -> None:
    option(group, "--host", "NAME", "address to listen at (default: 127.0.0.1, this machine only)")
    option(group, "--port", "N", "port to listen at; 0 is any that is free (default: 8000)", type=whole)
    option(group, "--public-url", "URL", "before links to pictures (default: the address of the request)")


def _what(group: argparse._ArgumentGroup) -> None:
    option(
        group, "--model", "NAME", "a model folder, its address (s3://...), or a bundled model (default: demo)"
    )
    option(group, "--served-name", "NAME,...", "of the model in requests (default: the folder's, or demo)")
    option(
        group,
        "--devices",
        "N",
        "auto, a number, cuda, or a list: cuda:0,cuda:1 or cpu,cpu (default: auto)",
        type=devices,
    )
    option(
        group,
        "--share",
        "NAME",
        "lanes of a request: elastic by the load, all, or one (default: elastic)",
        names=("elastic", "all", "one"),
    )
    option(group, "--nan-policy", "NAME", f"{' or '.join(NAN_POLICIES)} (default: error)", names=NAN_POLICIES)
    option(
        group,
        "--fp32-model",
        "DIR",
        "for retry-fp32 (default: the model's folder with -fp32 after it; of an address none)",
    )
    group.add_argument("--no-cuda-graphs", action="store_true", help="launch kernels and engines one by one")
    group.add_argument("--no-peer-copies", action="store_true", help="copy from GPU to GPU through the host")


def _who(group: argparse._ArgumentGroup) -> None:
    option(group, "--api-key", "KEY", "that requests must have; others of this machine can see it here")
    option(group, "--api-key-file", "FILE", "the same, one a line, # for comments")
    option(group, "--cors-origin", "URL,...", "pages of other sites that may use it (default: none)")
    option(
        group,
        "--allowed-host",
        "NAME,...",
        "it goes by (default: any; on loopback without keys localhost)",
    )
    option(group, "--trusted-proxy", "ADDR,...", "whose X-Forwarded-For is believed (default: none)")


def _bounds(group: argparse._ArgumentGroup) -> None:
    for name, metavar, about in (
        ("prompt-chars", "N", "characters of a prompt (default: 4000)"),
        ("images", "N", "pictures (default: 8)"),
        ("pixels", "N", "pixels of all its pictures (default: of --max-images of the model's size)"),
        ("steps", "N", "solver steps (default: 200)"),
        ("body-bytes", "N", "bytes of a body in JSON (default: 1048576)"),
        ("upload-bytes", "N", "bytes of a body with pictures (default: 33554432)"),
        ("upload-pixels", "N", "pixels of an uploaded picture (default: 16777216)"),
    ):
        option(group, f"--max-{name}", metavar, about, type=whole)
    option(group, "--max-seconds", "S", "of work that it may be for one lane (default: 600)", type=number)


def _others(group: argparse._ArgumentGroup) -> None:
    option(
        group,
        "--queue",
        "N",
        "requests that may wait, at most 1024; others come again (default: 64)",
        type=whole,
    )
    option(group, "--max-connections", "N", "open at once (default: 512)", type=whole)
    option(group, "--max-held-bytes", "N", "of all uploads, read or waiting (default: 134217728)", type=whole)
    option(group, "--header-timeout", "S", "seconds for a request's headers (default: 10)", type=number)
    option(group, "--body-timeout", "S", "seconds for its body (default: 30)", type=number)
    option(group, "--stall-timeout", "S", "after which a slow reader is looked at (default: 30)", type=number)
    option(group, "--read-rate", "N", "bytes a second that it must have read (default: 8192)", type=number)
    option(group, "--hang-timeout", "S", "after which a request may hang (default: 30)", type=number)
    option(
        group,
        "--drain-timeout",
        "S",
        "after SIGTERM for what was accepted (default: no end; with --ray 120)",
        type=number,
    )
    option(group, "--output-dir", "DIR", "keep pictures behind links there (default: in memory)")
    option(
        group, "--store-bytes", "N", "of pictures behind links, all together (default: 268435456)", type=whole
    )
    option(
        group, "--store-seconds", "S", "for which a link leads to its picture (default: 3600)", type=number
    )


def run(args: argparse.Namespace, console: Console) -> None:
    from ._serving import serve_pictures

    serve_pictures(args, console)
