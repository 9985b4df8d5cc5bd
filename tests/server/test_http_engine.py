"""HTTP over the engine and the model that users get: streams, clients that leave, the queue, deadlines."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

import pytest
from httpd import Answer, Service, error, events, open_request, picture, read_until, until

LONG: dict[str, Any] = {"steps": 200, "n": 2, "mode": "sequential"}


@pytest.fixture
def idle(real: Service) -> Service:
    until(lambda: not real.state["running"] and not real.state["queued"])
    return real


def test_pictures_are_those_of_the_pipeline(idle: Service) -> None:
    answer = idle.generate(seed=5, mode="aggressive", n=2)
    pipe = idle.app.service.pipe
    expected = pipe("a red fox", steps=4, seed=[5, 6], num_images=2, mode="aggressive")
    made = [picture(entry).tobytes() for entry in answer.json["data"]]
    assert made == [image.tobytes() for image in expected.images]


def test_a_stream_shows_rounds_and_then_the_picture(idle: Service) -> None:
    *partial, completed = events(
        idle.generate(stream=True, partial_images=100, seed=2, mode="sequential").body
    )
    assert [event["round"] for event in partial] == [1, 2, 3, 4]
    assert completed["type"] == "image_generation.completed"
    same = picture(idle.generate(seed=2, mode="sequential").json["data"][0])
    assert picture(completed).tobytes() == same.tobytes()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_given_up(
    idle: Service, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    names = ('driffusion_failures_total{reason="cancelled"}', 'driffusion_pictures_total{mode="sequential"}')
    before = [idle.metric(name) for name in names]
    with caplog.at_level(logging.INFO, "driffusion_trt.access"):
        with open_request(idle, stream=stream, partial_images=100, **LONG):
            until(lambda: idle.state["running"] == 1)
        until(lambda: idle.state["running"] == 0)
        until(lambda: any('"gone": true' in line for line in caplog.messages))
    line = json.loads(next(line for line in caplog.messages if '"gone": true' in line))
    assert line["status"] == 499 and line["path"] == "/v1/images/generations"
    assert [idle.metric(name) - old for name, old in zip(names, before, strict=True)] == [1, 0]
    assert idle.generate().status == 200


def test_one_that_waits_and_leaves_makes_room(idle: Service) -> None:
    with open_request(idle, **LONG), open_request(idle, **LONG), open_request(idle, **LONG) as last:
        until(lambda: idle.state["running"] + idle.state["queued"] == 3)
        last.close()
        until(lambda: idle.state["running"] + idle.state["queued"] == 2)


def test_a_slow_reader_of_a_stream_holds_nothing_up(idle: Service) -> None:
    with open_request(idle, stream=True, partial_images=100, steps=60, mode="sequential") as slow:
        until(lambda: idle.metric("driffusion_accepted_total"))
        assert idle.generate().status == 200
        until(lambda: not idle.state["running"])
        assert b"image_generation.completed" in read_until(slow, b"image_generation.completed")


def test_a_full_queue_refuses_and_loses_nothing(idle: Service) -> None:
    """Every request is answered once: with its own picture, or with when to come again."""
    answers: dict[int, Answer] = {}

    def ask(seed: int) -> None:
        answers[seed] = idle.generate(seed=seed, steps=60, mode="sequential")

    clients = [threading.Thread(target=ask, args=(seed,)) for seed in range(24)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    made = {seed: answer.json for seed, answer in answers.items() if answer.status == 200}
    for seed, answer in answers.items():
        if seed not in made:
            error(answer, 429, "queue_full")
            assert int(answer.headers["Retry-After"]) >= 1
    assert len(answers) == 24 and 4 <= len(made) < 24
    assert len({value["details"]["id"] for value in made.values()}) == len(made)
    assert all(value["data"][0]["seed"] == seed for seed, value in made.items())
    assert len({value["data"][0]["b64_json"] for value in made.values()}) == len(made)


def test_a_deadline_that_cannot_be_is_refused_at_once(idle: Service) -> None:
    start = time.monotonic()
    answer = idle.generate(deadline_ms=1, **LONG)
    assert "was to be there in 1 ms" in error(answer, 422, "deadline_exceeded")["message"]
    assert time.monotonic() - start < 10 and idle.state["running"] == 0


def test_a_deadline_that_was_kept_is_told_and_counted(idle: Service) -> None:
    before = idle.metric('driffusion_deadline_total{kept="yes"}')
    assert idle.generate(deadline_ms=60_000).json["details"]["deadline_kept"] is True
    assert "deadline_kept" not in idle.generate().json["details"]
    assert idle.metric('driffusion_deadline_total{kept="yes"}') == before + 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", ["square", "thin", "several"])
def test_the_largest_pictures_that_are_accepted_are_made(idle: Service, shape: str) -> None:
    """With the bounds that the service has by itself; one size more is refused."""
    model = idle.call("GET", "/v1/models").json["data"][0]
    unit, most = model["size_multiple"], idle.app.desk.limits.pixels
    assert most == 8 * 64 * 64
    side = int(most**0.5) // unit * unit
    width, height, n = {
        "square": (side, side, 1),
        "thin": (unit, most // unit, 1),
        "several": (64, 64, 8),
    }[shape]
    answer = idle.generate(size=f"{width}x{height}", n=n, steps=4)
    assert answer.status == 200, answer.body
    assert [picture(one).size for one in answer.json["data"]] == [(width, height)] * n
    wider = idle.generate(size=f"{width + unit}x{height + unit}", n=n, steps=4)
    error(wider, 400, "too_many_pixels")
    assert idle.state["status"] == "ready"


def test_what_cannot_be_is_refused_in_the_engine_s_words(idle: Service) -> None:
    error(idle.generate(size="64x65"), 400, "invalid_value")
    error(idle.generate(mode="sequential", rounds=3), 400, "invalid_value")
