"""What clients could fill or hold up: answers that nobody reads, uploads, connections that say too much."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpd import Service, closed, error, events, multipart, open_request, picture, serving, until
from PIL import Image

from driffusion_trt import InputError, ModelError, Pipeline
from driffusion_trt._errors import ConfigError
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.server.answers import PIECE_BYTES, Base64, Long, json_parts
from driffusion_trt.server.limits import Limits

pytestmark = pytest.mark.filterwarnings("ignore::driffusion_trt.pipeline.PromptWarning")

# A client that leaves after it has sent more


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [b"G", b"\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nG"])
def test_a_client_that_sent_more_and_leaves_is_given_up(service: Service, more: bytes, stream: bool) -> None:
    service.engine.gate.clear()
    with open_request(service, stream=stream) as connection:
        until(lambda: service.engine.under_way)
        (ticket,) = service.engine.under_way
        connection.sendall(more)
        time.sleep(0.1)
    until(ticket.cancelled.is_set)


def test_of_a_request_that_came_ahead_the_end_is_seen_too(service: Service) -> None:
    """It begins when the one before it is answered, and no byte comes then."""
    requests = b""
    for steps in (4, 200):
        body = json.dumps({"prompt": "a red fox", "steps": steps, "mode": "sequential"})
        requests += (
            "POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
    service.engine.gate.clear()
    with service.connect() as connection:
        connection.sendall(requests + b"G")
        until(lambda: service.engine.under_way)
        time.sleep(0.1)
        (first,) = service.engine.under_way
        service.engine.gate.set()
        until(lambda: service.engine.tickets[-1] is not first)
        service.engine.gate.clear()
        second = service.engine.tickets[-1]
        assert second in service.engine.under_way
    until(second.cancelled.is_set)


def test_a_client_that_says_too_much_ahead_is_cut_off(service: Service) -> None:
    service.engine.gate.clear()
    with open_request(service) as connection:
        until(lambda: service.engine.under_way)
        (ticket,) = service.engine.under_way
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"x" * 4096)
        until(ticket.cancelled.is_set)


# Answers that nobody reads


def buffered(service: Service) -> list[int]:
    """Bytes that the server has of what was sent on each connection, beyond what the kernel took."""
    found = list(service.server.server_state.connections)
    return [one.transport.get_write_buffer_size() for one in found]  # type: ignore[union-attr]


@pytest.mark.parametrize("kept", ["memory", "folder"])
def test_links_that_nobody_reads_are_held_in_pieces(pipe: Pipeline, tmp_path: Path, kept: str) -> None:
    with (
        serving(pipe, folder=tmp_path if kept == "folder" else None) as service,
        contextlib.ExitStack() as open_,
    ):
        (name,) = service.store.put([bytes(8 << 20)], "png")
        for _ in range(5):
            connection = open_.enter_context(service.connect(1 << 14))
            connection.sendall(f"GET /v1/images/files/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        until(lambda: sum(size > 0 for size in buffered(service)) == 5)
        time.sleep(0.2)
        assert max(buffered(service)) <= PIECE_BYTES
        whole = service.call("GET", f"/v1/images/files/{name}")
        assert whole.body == bytes(8 << 20) and whole.headers["Content-Length"] == str(8 << 20)


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_answer_that_nobody_reads_is_held_in_pieces(pipe: Pipeline, stream: bool) -> None:
    fields: dict[str, Any] = {"size": "512x512", "n": 4, "steps": 1, "seed": 3, "stream": stream}
    with serving(pipe, limits=Limits(pixels=4 * 512 * 512)) as service:
        connection = service.connect(1 << 14)
        with connection:
            body = json.dumps({"prompt": "a red fox", **fields})
            connection.sendall(
                b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            until(lambda: any(buffered(service)))
            time.sleep(0.2)
            assert max(buffered(service)) <= PIECE_BYTES + 100  # and the size of the piece, where it is told
        answer = service.generate(**fields)
        assert len(answer.body) > 8 * PIECE_BYTES
        found = events(answer.body) if stream else answer.json["data"]
        assert [picture(one).size for one in found] == 4 * [(512, 512)]


def test_the_loop_goes_on_while_a_long_answer_is_made() -> None:
    data = bytes(range(256)) * (1 << 14) + b"x"
    value = {"data": [{"b64_json": Base64(data)}, {"b64_json": Base64(b"")}], "text": "ü"}
    sent: list[bytes] = []
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def run() -> Long:
        task = asyncio.ensure_future(others())
        answer = Long(value)
        await answer({"type": "http"}, None, send)  # type: ignore[arg-type]
        task.cancel()
        return answer

    answer = asyncio.run(run())
    whole = {"data": [{"b64_json": base64.b64encode(data).decode()}, {"b64_json": ""}], "text": "ü"}
    assert b"".join(sent) == json.dumps(whole, separators=(",", ":")).encode()
    assert answer.headers["content-length"] == str(sum(map(len, sent)))
    assert max(map(len, sent)) <= PIECE_BYTES and turns >= len(data) * 4 // 3 // PIECE_BYTES
    with pytest.raises(TypeError, match="set has no form in JSON"):
        json_parts({"x": set()})


def test_the_loop_is_asyncio_s_whatever_else_is_installed(service: Service) -> None:
    service.generate()
    assert service.engine.loop is not None and type(service.engine.loop).__module__.startswith("asyncio.")


# Uploads


@contextlib.contextmanager
def uploading(service: Service, size_bytes: int, client: str) -> Iterator[socket.socket]:
    """An upload of which so many bytes are there, and one is not."""
    with service.connect() as found:
        found.sendall(
            f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\nContent-Type: "
            f"multipart/form-data; boundary=edge\r\nContent-Length: {size_bytes + 1}\r\n\r\n".encode()
            + b"x" * size_bytes
        )
        yield found


def test_slow_uploads_hold_up_no_other_request(pipe: Pipeline) -> None:
    with serving(pipe, limits=Limits(held_bytes=100_000), proxies=["127.0.0.1"]) as service:
        bodies = service.bodies
        with contextlib.ExitStack() as slow:
            for number in range(2):
                slow.enter_context(uploading(service, 50_000, f"192.0.2.{number}"))
            until(lambda: bodies.held_bytes == 100_000)
            kind, body = multipart({"prompt": "a fox"}, {"image": b"x" * 20_000})
            refused = service.call(
                "POST", "/v1/images/edits", body, content_type=kind, X_Forwarded_For="192.0.2.9"
            )
            assert "uploads of all requests have 100000 bytes" in error(refused, 503, "busy")["message"]
            assert refused.headers["Retry-After"] == "1"
            assert service.generate(prompt="a fox " * 500).status == 200, "JSON of a usual size has room"
        until(lambda: bodies.held_bytes == 0)


def test_one_client_s_uploads_leave_room_to_others(pipe: Pipeline) -> None:
    with serving(pipe, limits=Limits(held_bytes=100_000), proxies=["127.0.0.1"]) as service:
        bodies = service.bodies
        with uploading(service, 30_000, "192.0.2.1"), uploading(service, 30_000, "192.0.2.1") as second:
            until(lambda: bodies.held_bytes)
            assert b"uploads of one client have 50000 bytes" in closed(second)
            with uploading(service, 50_000, "192.0.2.2"):
                until(lambda: bodies.held_bytes == 80_000)
        until(lambda: bodies.held_bytes == 0)
        assert not bodies._by_client


def test_what_is_alone_is_let_in(pipe: Pipeline) -> None:
    """Else it would be told to come again for ever."""
    with serving(pipe, limits=Limits(held_bytes=100)) as service:
        kind, body = multipart({"prompt": "a fox"}, {"image": b"x" * 1000})
        answer = service.call("POST", "/v1/images/edits", body, content_type=kind)
        assert error(answer, 400, "invalid_image")
        assert service.generate(prompt="a fox" * 500, negative_prompt="é" * 3000).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_of_an_upload_that_waits_there_are_the_pixels_that_it_needs(service: Service, stream: bool) -> None:
    image, mask = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (1024, 1024), "red").save(image, "PNG")
    Image.new("RGBA", (1024, 1024)).save(mask, "PNG")
    kind, body = multipart(
        {"prompt": "a fox", "steps": 4, "size": "64x128", "stream": str(stream).lower()},
        {"image": image.getvalue(), "mask": mask.getvalue()},
    )
    service.engine.gate.clear()
    with service.connect() as connection:
        connection.sendall(
            f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        until(lambda: service.engine.asked and service.engine.under_way)
        asked = service.engine.asked[-1]
        assert [one.size for name in ("image", "mask_image") for one in asked[name]] == 2 * [(64, 128)]
        assert service.bodies.held_bytes == 64 * 128 * (4 + 1)
    until(lambda: service.bodies.held_bytes == 0)


def test_links_that_may_not_fit_are_refused_before_they_are_made(pipe: Pipeline) -> None:
    """By the most that a file of so many pixels can be: of the size asked, the model's or the upload's."""
    image = io.BytesIO()
    Image.new("RGB", (512, 512)).save(image, "PNG")
    with serving(pipe, limits=Limits(stored_bytes=100_000, pixels=512 * 512)) as service:
        for answer in (
            service.generate(response_format="url", n=2),
            service.generate(response_format="url", size="256x256"),
            service.edit({"image": image.getvalue()}, response_format="url"),
        ):
            assert "response_format b64_json" in error(answer, 507, "store_full")["message"]
        assert not service.engine.asked
        assert service.generate(response_format="url").status == 200


# What fails once a request was taken


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("failed", [ModelError, InputError, ConfigError])
def test_a_request_that_was_taken_and_fails_is_no_fault_of_its_client(
    service: Service, failed: type[Exception], stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    service.engine.fail = failed("/secret/place")
    with caplog.at_level(logging.ERROR, "driffusion_trt.server"):
        answer = service.generate(stream=stream)
        if stream:
            (event,) = events(answer.body)
            assert event["error"]["code"] == "server_error"
        else:
            error(answer, 500, "server_error")
        assert b"secret" not in answer.body
        until(lambda: "/secret/place" in caplog.text and answer.headers["X-Request-ID"] in caplog.text)


@pytest.mark.parametrize("network", ["text_encoder", "vae_encoder", "vae_decoder"])
def test_a_network_that_fails_is_told_and_logged_as_our_fault(
    service: Service, network: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = OnnxSession.run

    def broken(session: OnnxSession, *given: Any, **more: Any) -> Any:
        if network in str(session.path):
            raise ModelError(f"{session.path} failed: no memory")
        return run(session, *given, **more)

    monkeypatch.setattr(OnnxSession, "run", broken)
    image = io.BytesIO()
    Image.new("RGB", (64, 64)).save(image, "PNG")
    with caplog.at_level(logging.ERROR, "driffusion_trt.server"):
        answer = service.edit({"image": image.getvalue()}, prompt=f"a fox of {network}")
        error(answer, 500, "server_error")
        assert b"onnx" not in answer.body
        until(lambda: f"{network}" in caplog.text)
