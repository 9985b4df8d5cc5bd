"""Around replicas: answers for those that are lost, shared pictures, metrics of all. Without a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import uvicorn
from httpd import stored
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message

from driffusion_trt._errors import LaneError, ModelError
from driffusion_trt.server.answers import ApiError
from driffusion_trt.server.app import Options
from driffusion_trt.server.edge import ACCESS, Edge, Keys
from driffusion_trt.server.metrics import Metrics
from driffusion_trt.server.ray_front import REPLICA, Front
from driffusion_trt.server.ray_metrics import STALE_S, Board, ReplicaMetrics
from driffusion_trt.server.ray_store import NoLinks, SharedStore
from driffusion_trt.server.sites import Sites

Proxy = Callable[[Any, Any, Callable[[Message], Awaitable[None]]], Awaitable[None]]


def start(status: int = 200, replica: str = "a1", kind: str = "application/json", **more: str) -> Message:
    headers = {"content-type": kind, "x-request-id": "inner", **more} | (
        {REPLICA: replica} if replica else {}
    )
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"x-request-id", b"of Ray"))
    return {"type": "http.response.start", "status": status, "headers": raw}


def body(data: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def asked(
    messages: list[Message], path: str = "/v1/models", **headers: str
) -> tuple[list[Message], dict[str, Any]]:
    """What goes out where the proxy sends these messages and ends; and the scope that it was given."""
    sent: list[Message] = []
    scopes: list[dict[str, Any]] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        for message in messages:
            await send(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Front(proxy)({"type": "http", "path": path, "headers": raw}, receive, send))
    return sent, scopes[0]


def headers_of(message: Message) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in message["headers"]}


def test_what_a_replica_says_passes_with_one_id() -> None:
    sent, scope = asked([start(200), body(b"{", True), body(b"}")], **{"x-request-id": "mine"})
    assert [one["type"] for one in sent] == ["http.response.start", *2 * ["http.response.body"]]
    assert [value for name, value in sent[0]["headers"] if name == b"x-request-id"] == [b"mine"]
    assert headers_of(sent[0])[REPLICA.lower()] == "a1"
    assert b"".join(one["body"] for one in sent[1:]) == b"{}" and not sent[-1]["more_body"]
    assert (b"x-request-id", b"mine") in scope["headers"]


@pytest.mark.parametrize(
    "messages", [[], [start()]], ids=["before the answer", "after its headers, which are held"]
)
def test_a_lost_replica_is_an_answer_that_says_to_ask_again(messages: list[Message]) -> None:
    sent, _ = asked(messages)
    assert sent[0]["status"] == 503 and headers_of(sent[0])["retry-after"] == "1"
    assert headers_of(sent[0])["content-type"] == "application/json"
    error = json.loads(sent[1]["body"])["error"]
    assert error["code"] == "replica_lost" and error["request_id"] == headers_of(sent[0])["x-request-id"]
    assert len(sent) == 2


def test_a_stream_ends_with_an_error_where_its_replica_is_lost() -> None:
    sent, _ = asked([start(kind="text/event-stream; charset=utf-8"), body(b": accepted\n\n", True)])
    assert sent[0]["status"] == 200 and not sent[-1]["more_body"]
    event, data = sent[-1]["body"].decode().strip().split("\n")
    assert event == "event: error" and json.loads(data[6:])["error"]["code"] == "replica_lost"


def test_another_answer_that_was_begun_is_cut() -> None:
    """The length that it told tells the client."""
    sent, _ = asked([start(**{"content-length": "9"}), body(b"half", True)])
    assert len(sent) == 2 and sent[1]["more_body"]


@pytest.mark.parametrize(
    ("status", "code"), [(404, "draining"), (503, "no_replica"), (429, "no_replica"), (500, "no_replica")]
)
def test_what_ray_says_of_itself_is_said_as_openai_says_it(status: int, code: str) -> None:
    sent, _ = asked([start(status, replica="", kind="text/plain"), body(b"Path '/' not found")])
    assert sent[0]["status"] == 503 and headers_of(sent[0])["retry-after"] == "5"
    assert json.loads(sent[1]["body"])["error"]["code"] == code


def test_a_404_of_a_replica_stays_one() -> None:
    sent, _ = asked([start(404), body(b"{}")])
    assert sent[0]["status"] == 404


def test_the_proxys_own_paths_are_left_alone() -> None:
    sent, _ = asked([start(200, replica="", kind="text/plain"), body(b"success")], "/-/healthz")
    assert sent[0]["status"] == 200 and sent[1]["body"] == b"success"


@pytest.mark.parametrize(
    "name",
    [
        "x-request-disconnect-disabled",
        "X-Request-Timeout-Seconds",
        "serve-multiplexed-model-id",
        "serve_multiplexed_model_id",
        "x-session-id",
    ],
)
def test_a_client_cannot_steer_ray(name: str) -> None:
    _, scope = asked([start(), body(b"")], **{name: "1", "authorization": "Bearer x"})
    assert {key for key, _ in scope["headers"]} == {b"authorization", b"x-request-id"}


def test_an_odd_id_is_replaced() -> None:
    _, scope = asked([start(), body(b"")], **{"x-request-id": "a b\x7f"})
    assert dict(scope["headers"])[b"x-request-id"] != b"a b\x7f"


def test_links_lead_to_pictures_of_every_replica(tmp_path: Path) -> None:
    one, other = (SharedStore(1 << 20, 60.0, tmp_path) for _ in range(2))
    (name,) = one.put([b"picture"], "png")
    assert stored(other, name) == stored(one, name) == (b"picture", "image/png")
    old = time.time() - 61
    os.utime(tmp_path / f"driffusion-{name}.png", (old, old))
    assert other.get(name) is None
    (tmp_path / "driffusion-secret.png").write_bytes(b"no picture of ours")
    for odd in ("secret", "../driffusion-secret", "A" * 32, "0" * 33, "*", ""):
        assert other.get(odd) is None


def test_a_replica_that_joins_takes_no_picture_of_another(tmp_path: Path) -> None:
    """To make room for its own: bytes of others do not count as its."""
    first = SharedStore(100, 60.0, tmp_path)
    names = first.put([b"x" * 40, b"y" * 40], "png")
    second = SharedStore(100, 60.0, tmp_path)
    assert second.size_bytes == 0
    names += second.put([b"z" * 40, b"z" * 40], "png")
    found = [stored(store, name) for store in (first, second) for name in names]
    assert [len(one[0]) if one else 0 for one in found] == 8 * [40]
    second.put([b"z" * 40], "png")
    assert [stored(first, name) is not None for name in names] == [True, True, False, True], (
        "its own made room"
    )


def test_pictures_of_a_replica_that_is_gone_go_after_their_time(tmp_path: Path) -> None:
    began = time.time()
    now = [began]
    (name,) = SharedStore(100, 30.0, tmp_path).put([b"x"], "png")
    left = SharedStore(100, 30.0, tmp_path, lambda: now[0])
    (tmp_path / "driffusion-notes.txt").write_text("of somebody else")
    for after_s, there in ((31, True), (89, True), (151, False)):
        now[0] = began + after_s
        left.drop_old()
        assert (tmp_path / f"driffusion-{name}.png").exists() == there, after_s
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_shared_folder_links_are_refused() -> None:
    store = NoLinks()
    for refused in (lambda: store.check(1), lambda: store.put([b"x"], "png")):
        with pytest.raises(
            ApiError, match="serve with --output-dir and a folder that all nodes share"
        ) as got:
            refused()
        assert got.value.status == 400 and got.value.param == "response_format"
    assert store.get("0" * 32) is None


def test_any_replica_has_the_metrics_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    board, first, second = Board(), ReplicaMetrics("a1"), ReplicaMetrics("b2")
    for metrics, count in ((first, 2), (second, 3)):
        for _ in range(count):
            metrics.answered("/v1/models", 200, 0.1)
    assert board.exchange("a1", first.families()) == []
    second.others = board.exchange("b2", second.families())
    families = {one.name: one for one in text_string_to_metric_families(second.text().decode())}
    counts = {
        one.labels["replica"]: one.value
        for one in families["driffusion_http_requests"].samples
        if one.name == "driffusion_http_requests_total"
    }
    assert counts == {"a1": 2, "b2": 3}
    assert {one.labels["replica"] for family in families.values() for one in family.samples} == {"a1", "b2"}
    assert second.text().decode().count("# TYPE driffusion_http_requests_total") == 1
    later = time.monotonic() + STALE_S + 1
    monkeypatch.setattr("driffusion_trt.server.ray_metrics.time.monotonic", lambda: later)
    assert board.exchange("b2", second.families()) == [], "one that says nothing is gone"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, as Ray is imported
def test_a_replica_has_a_group_of_gpus_and_the_load_makes_more() -> None:
    from driffusion_trt.server.ray_app import Facts, Recipe
    from driffusion_trt.server.ray_scale import Scale, deployment_of, target_of

    facts = Facts("2 GPUs", lanes=2, per_second=0.5, expected_ms=3000.0)
    assert target_of(facts) == 3.0, "of which each takes 6 seconds at half a picture a second"
    assert target_of(Facts("1 CPU thread", 1, 0.1, 1000.0)) == 1.0
    scale = Scale(None, "127.0.0.1", 8000, (1, 8), gpus=2, up_s=5.0)
    assert scale.devices == "cuda" and Scale(None, "127.0.0.1", 8000, cpus=3).devices == 3
    recipe = Recipe("demo", Options(("demo",)), {"queue": 10})
    made: Any = deployment_of(recipe, scale, facts.lanes, target_of(facts), None)._bound_deployment
    assert made.ray_actor_options == {"num_cpus": 1, "num_gpus": 2}
    load = made._deployment_config.autoscaling_config
    assert (load.min_replicas, load.max_replicas, load.target_ongoing_requests) == (1, 8, 3.0)
    assert (load.upscale_delay_s, load.downscale_delay_s) == (5.0, 600.0)
    assert made.max_ongoing_requests > 10 + facts.lanes, "the engine says 429, not Ray"
    assert made._deployment_config.graceful_shutdown_timeout_s > 120


def named(peer: str, trusted: tuple[str, ...]) -> str:
    """Who a client of this address is, that says it is another, at a proxy with the variables we give it."""
    from driffusion_trt.server.ray_connection import _of_proxies

    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORWARDED_ALLOW_IPS", _of_proxies(trusted)["FORWARDED_ALLOW_IPS"])
        config = uvicorn.Config(lambda: app, factory=True, lifespan="off", log_config=None)  # as Ray makes it
        config.load()
    headers = [(b"x-forwarded-for", b"203.0.113.7")]
    scope: Any = {"type": "http", "client": (peer, 1), "headers": headers, "scheme": "http"}
    unused: Any = None
    asyncio.run(config.loaded_app(scope, unused, unused))
    return seen[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydantic, as Ray is imported
@pytest.mark.parametrize(
    ("peer", "trusted", "found"),
    [
        ("127.0.0.1", (), "127.0.0.1"),
        ("10.1.2.3", (), "10.1.2.3"),
        ("10.1.2.3", ("10.0.0.0/8", "::1"), "203.0.113.7"),
        ("11.1.2.3", ("10.0.0.0/8", "::1"), "11.1.2.3"),
        ("127.0.0.1", ("10.0.0.0/8", "::1"), "127.0.0.1"),
    ],
)
def test_only_trusted_proxies_say_who_asks(peer: str, trusted: tuple[str, ...], found: str) -> None:
    """Else clients of the proxy's own machine could choose whose turns they take."""
    assert named(peer, trusted) == found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"ready": False, "draining": True}, None),
        ({"ready": False, "lanes": 0, "lanes_failed": 2}, "no device is left: 2 failed"),
        ({"ready": False, "hanging": 1}, "no more requests are taken: 1 of them do not end"),
    ],
)
def test_a_replica_says_why_it_is_to_be_replaced(change: dict[str, Any], said: str | None) -> None:
    from driffusion_trt.server.ray_app import Recipe, ReplicaApp
    from driffusion_trt.server.status import Status

    status = Status(True, False, 0, 0, 64, 2, 0, 0, 0, 0.0, 100.0, 1.0, 1.0, False)
    app: Any = ReplicaApp(Recipe("demo", Options(("demo",))))
    app._app = SimpleNamespace(service=SimpleNamespace(status=lambda: replace(status, **change)))
    with contextlib.nullcontext() if said is None else pytest.raises(LaneError, match=said):
        app.check_health()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_replicas_find_the_content_that_the_trial_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both models; a node that has it needs no storage."""
    from driffusion_trt.server.ray_app import Engine, Recipe

    loaded: list[tuple[Path, Path]] = []
    monkeypatch.setattr(Engine, "load", lambda model, fp32_model, **how: loaded.append((model, fp32_model)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("half", "whole"):
        tiny.make_model_folder(tmp_path / name)
    half, whole = (f"file://{tmp_path}/{name}" for name in ("half", "whole"))
    recipe = Recipe(half, Options(("demo",)), {"fp32_model": whole}).settled()
    assert set(recipe.digests) == {half, whole}
    for name in ("half", "whole"):
        (tmp_path / name / "calibration.json").write_text("{}")
    recipe.engine()
    assert [path.name.partition("-")[0] for path in loaded[0]] == ["half", "whole"]
    assert [path.name.partition("-")[2] for path in loaded[0]] == [
        recipe.digests[half],
        recipe.digests[whole],
    ]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of another node"))
    with pytest.raises(ModelError, match="has another content than when the service began"):
        recipe.engine()
    assert len(loaded) == 1 and Recipe("demo", Options(("demo",))).settled().digests == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("answers", [True, False], ids=["", "where Ray does not answer"])
def test_a_second_signal_takes_the_service_down_too(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to no process: else it would go on on the cluster."""
    from driffusion_trt.server import ray_connection

    asked: list[str] = []
    never = threading.Event()

    def down() -> None:
        asked.append("down")
        if not answers:
            never.wait(60)

    def leave(status: int) -> None:
        asked.append(str(status))

    monkeypatch.setattr(ray_connection, "_serve_down", down)
    monkeypatch.setattr(ray_connection, "_AT_ONCE_S", 0.2)
    monkeypatch.setattr(ray_connection.os, "_exit", leave)
    began = time.monotonic()
    with ray_connection._ended_by_signals() as ended:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert ended.is_set() and asked == []
        signal.raise_signal(signal.SIGINT)
    assert asked == ["down", "130"] and time.monotonic() - began < 30
    never.set()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trial_that_waits_for_room_says_so() -> None:
    from driffusion_trt.server.ray_cluster import _said_late

    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    with _said_late("waits", said.put, 0.01):
        assert said.get(timeout=60) == "waits"
    with _said_late("waits", said.put, 0.2) as came:
        came()
        time.sleep(0.4)
    assert said.empty()


def test_a_request_that_ray_cancels_is_one_whose_client_left(caplog: pytest.LogCaptureFixture) -> None:
    """A proxy of Ray sees a client leave, and may cancel the request before the replica is told."""

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def nothing(*message: Any) -> Message:
        raise AssertionError("nobody is there to be heard or answered")

    async def run() -> None:
        edge = Edge(waits, Keys([]), (), Sites((), ()), Metrics())
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"x-request-id", b"left")]}
        request = asyncio.ensure_future(edge(scope, nothing, nothing))
        await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    with caplog.at_level(logging.INFO, ACCESS.name):
        asyncio.run(run())
    (line,) = [json.loads(message) for message in caplog.messages]
    assert line["id"] == "left" and line["status"] == 499 and line["gone"]
