"""The HTTP API over a socket: pictures, errors, streams, keys, and clients that misbehave."""

from __future__ import annotations

import contextlib
import gc
import http.client
import io
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from httpd import (
    DEADLINE_S,
    Answer,
    Service,
    closed,
    error,
    events,
    multipart,
    nearly_full,
    open_request,
    picture,
    read_until,
    serving,
    until,
)
from PIL import Image

from driffusion_trt import InputError, LaneError, NonFiniteError, Pipeline
from driffusion_trt._errors import DeadlineError, QueueFullError
from driffusion_trt.pictures import SETTINGS_KEY
from driffusion_trt.server.bodies import form_of
from driffusion_trt.server.edge import Keys
from driffusion_trt.server.limits import Limits

# Pictures


def test_pictures_are_those_of_the_pipeline(service: Service) -> None:
    answer = service.generate(n=2, seed=5, mode="aggressive", guidance_scale=2, negative_prompt="blue")
    assert answer.status == 200 and answer.headers["Cache-Control"] == "no-store"
    expected = service.engine.pipe(
        "a red fox", steps=4, seed=[5, 6], num_images=2, mode="aggressive", guidance_scale=2,
        negative_prompt="blue",
    )  # fmt: skip
    found = answer.json
    made = [picture(entry) for entry in found["data"]]
    assert [image.tobytes() for image in made] == [image.tobytes() for image in expected.images]
    assert [entry["seed"] for entry in found["data"]] == [5, 6]
    assert (found["size"], found["output_format"], found["background"]) == ("64x64", "png", "opaque")
    details = found["details"]
    assert details["mode"] == "aggressive" and details["lanes"] == 2 and "spans" not in details
    assert details["split_guidance"] is False
    assert len(details["rounds_ms"]) == details["sequential_calls"] == expected.stats.rounds
    assert json.loads(made[1].info[SETTINGS_KEY])["seed"] == 6, "the file remembers how it was made"


def test_the_lanes_over_time_are_told_where_asked_for(service: Service) -> None:
    details = service.generate(timeline=True, mode="aggressive", lanes=2).json["details"]
    spans = details["spans"]
    assert {span["lane"] for span in spans} == {"lane 0", "lane 1"}
    assert all(0 <= span["start_ms"] <= span["end_ms"] for span in spans)
    assert {span["round"] for span in spans} == set(range(1, details["sequential_calls"] + 1))


@pytest.mark.parametrize(("kind", "name"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_other_kinds_of_files(service: Service, kind: str, name: str) -> None:
    answer = service.generate(output_format=kind, output_compression=80)
    assert picture(answer.json["data"][0]).format == name
    assert answer.json["output_format"] == kind


def test_links_lead_to_pictures(service: Service) -> None:
    answer = service.generate(response_format="url", seed=3)
    url = answer.json["data"][0]["url"]
    assert url.startswith(f"{service.url}/v1/images/files/") and "b64_json" not in answer.json["data"][0]
    file = service.call("GET", url.removeprefix(service.url))
    assert file.status == 200 and file.headers["Content-Type"] == "image/png"
    same = picture(service.generate(seed=3).json["data"][0])
    assert Image.open(io.BytesIO(file.body)).tobytes() == same.tobytes()
    error(service.call("GET", f"/v1/images/files/{'0' * 32}"), 404, "not_found")


@pytest.mark.parametrize("path", ["../pyproject.toml", "..%2f..%2fetc%2fpasswd", "%2e%2e/page.html", "a/b"])
def test_no_path_reaches_the_file_system(service: Service, path: str) -> None:
    for start in ("/v1/images/files/", "/", "/page/"):
        assert service.call("GET", start + path).status == 404


def test_a_picture_to_start_from(service: Service) -> None:
    file, mask = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    hole = Image.new("RGBA", (64, 64), "black")
    hole.paste((0, 0, 0, 0), (0, 0, 32, 64))
    hole.save(mask, "PNG")
    answer = service.edit(
        {"image": file.getvalue(), "mask": mask.getvalue()}, strength="0.5", seed="4", mode="sequential"
    )
    assert answer.status == 200, answer.body
    white = Image.new("L", (64, 64))
    white.paste(255, (0, 0, 32, 64))
    expected = service.engine.pipe(
        "a red fox", steps=4, seed=[4], strength=0.5, mode="sequential",
        image=Image.new("RGB", (64, 64), "red"), mask_image=white,
    )  # fmt: skip
    assert picture(answer.json["data"][0]).tobytes() == expected.images[0].tobytes()


def test_uploads_are_checked(service: Service) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    image = file.getvalue()
    assert error(service.edit({}), 400, "missing_required_parameter")["param"] == "image"
    assert error(service.edit({"image": b"GIF89a"}), 400, "invalid_image")["param"] == "image"
    assert error(service.edit({"image": image, "else": image}), 400, "unknown_parameter")["param"] == "else"
    assert error(service.edit({"image": image}, mask="x"), 400, "invalid_type")["param"] == "mask"
    assert error(service.edit({"image": image}, n="two"), 400, "invalid_type")["param"] == "n"
    error(
        service.call("POST", "/v1/images/edits", b"--x", content_type="multipart/form-data"),
        400,
        "invalid_form",
    )
    kind = "multipart/form-data; boundary=edge"
    error(service.call("POST", "/v1/images/edits", b"nothing", content_type=kind), 400, "invalid_form")
    error(service.call("POST", "/v1/images/edits", b"{}", content_type="application/json"), 415, "media_type")


def test_a_form_that_stops_in_the_middle_leaves_nothing_open(service: Service) -> None:
    kind, body = multipart({"prompt": "a fox"}, {"image": b"x" * 100})
    error(
        service.call("POST", "/v1/images/edits", body[:-40], content_type=kind),
        400,
        "missing_required_parameter",
    )
    gc.collect()  # a file that was not closed warns then, which is an error here


# Streams


def test_a_stream_shows_rounds_and_then_the_picture(service: Service) -> None:
    answer = service.generate(stream=True, partial_images=100, seed=2, mode="sequential")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    *partial, completed = events(answer.body)
    assert [event["type"] for event in partial] == ["image_generation.partial_image"] * 4
    assert [event["partial_image_index"] for event in partial] == [0, 1, 2, 3]
    assert [(event["round"], event["state"]) for event in partial] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert all(picture(event).size == (16, 16) for event in partial)
    assert completed["type"] == "image_generation.completed" and completed["seed"] == 2
    same = picture(service.generate(seed=2, mode="sequential").json["data"][0])
    assert picture(completed).tobytes() == same.tobytes()


@pytest.mark.parametrize(("wanted", "rounds"), [(None, []), (0, []), (1, [4]), (3, [2, 4, 6])])
def test_as_many_previews_as_were_asked_for(service: Service, wanted: int | None, rounds: list[int]) -> None:
    answer = service.generate(stream=True, partial_images=wanted, steps=8, mode="sequential")
    *partial, completed = events(answer.body)
    assert [event["round"] for event in partial] == rounds
    assert completed["type"] == "image_generation.completed"


def test_a_stream_says_how_many_are_before_it(service: Service) -> None:
    service.engine.gate.clear()
    with open_request(service), open_request(service):
        until(lambda: len(service.engine.under_way) == 2)
        with open_request(service, stream=True) as last:
            until(lambda: len(service.engine.under_way) == 3)
            service.engine.gate.set()
            told = read_until(last, b"before it")
            assert f": accepted, {service.engine.tickets[-1].position - 1} before it".encode() in told


def test_a_stream_of_several_pictures_ends_with_each(service: Service) -> None:
    found = events(service.generate(stream=True, n=2, seed=8, response_format="url").body)
    assert [(event["index"], event["seed"]) for event in found] == [(0, 8), (1, 9)]
    assert all("/v1/images/files/" in event["url"] for event in found)


@pytest.mark.parametrize("failed", [LaneError, OSError, ValueError, MemoryError])
def test_a_stream_that_fails_says_so(
    service: Service, failed: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    service.engine.fail = failed("lane 3 of /secret/place")
    with caplog.at_level(logging.ERROR, "driffusion_trt.server"):
        (event,) = events(service.generate(stream=True).body)
    assert event["type"] == "error" and event["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(event) and "secret" in caplog.text


# Errors


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (QueueFullError("full", 2.2), 429, "queue_full"),
        (DeadlineError("too soon", 900.0), 422, "deadline_exceeded"),
        (InputError("no"), 400, "invalid_value"),
        (LaneError("/secret/"), 500, "server_error"),
        (ZeroDivisionError("/secret/"), 500, "server_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_refusals_of_the_engine(
    service: Service, raised: Exception, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    service.engine.refuse = raised
    answer = service.generate()
    error(answer, status, code)
    assert b"secret" not in answer.body and b"Traceback" not in answer.body
    if status == 429:
        assert (answer.headers["Retry-After"], answer.headers["retry-after-ms"]) == ("3", "2200")
    if status == 500:
        until(lambda: answer.headers["X-Request-ID"] in caplog.text)  # the log has the reason by this id


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (DeadlineError("too late", 900.0), 504, "deadline_exceeded"),
        (NonFiniteError("inf"), 422, "non_finite"),
        (LaneError("gone"), 500, "server_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_failures_of_accepted_requests(service: Service, raised: Exception, status: int, code: str) -> None:
    service.engine.fail = raised
    error(service.generate(), status, code)


def test_a_full_queue_is_said_with_when_to_come_again(service: Service) -> None:
    service.engine.gate.clear()
    waiting = [open_request(service) for _ in range(8)]
    until(lambda: len(service.engine.under_way) == 8)
    answer = service.generate()
    error(answer, 429, "queue_full")
    assert answer.headers["Retry-After"] == "2"
    assert service.metric("driffusion_queue_length") == 7
    service.engine.gate.set()
    for connection in waiting:
        with connection:
            assert connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_json"),
        (b'{"prompt": NaN}', 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b'{"prompt": "\\ud800"}', 400, "invalid_value"),
        (b'{"prompt": "a", "\\ud800": 1}', 400, "unknown_parameter"),
        (b'{"prompt": "a", "steps": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
        (b'{"prompt": "a", "seed": 1e999}', 400, "invalid_type"),
    ],
    ids=range(10),
)
def test_bodies_that_are_none(service: Service, body: bytes, status: int, code: str) -> None:
    error(service.call("POST", "/v1/images/generations", body, content_type="application/json"), status, code)


def test_no_depth_of_a_body_is_too_deep(service: Service) -> None:
    """One of them was: deeper than `repr` goes, and not deeper than the reader of JSON."""
    for depth in range(900, 1001):
        body = b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}"
        answer = service.call("POST", "/v1/images/generations", body, content_type="application/json")
        assert answer.status == 400, depth


def test_other_paths_and_methods(service: Service) -> None:
    error(service.call("GET", "/v1/images"), 404, "not_found")
    answer = service.call("GET", "/v1/images/generations")
    error(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"
    error(service.call("POST", "/v1/images/generations", b"{}", content_type="text/plain"), 415, "media_type")


# What is here


def test_models(service: Service) -> None:
    listed = service.call("GET", "/v1/models").json
    (model,) = listed["data"]
    assert listed["object"] == "list" and (model["id"], model["object"]) == ("tiny", "model")
    assert (model["size"], model["edits"], model["devices"]) == ("64x64", True, "2 CPU threads")
    assert service.call("GET", "/v1/models/tiny").json == model
    error(service.call("GET", "/v1/models/other"), 404, "model_not_found")


def test_health_and_readiness(service: Service) -> None:
    assert service.call("GET", "/healthz").json == {"status": "alive"}
    ready = service.call("GET", "/readyz")
    assert ready.status == 200 and ready.json["status"] == "ready" and ready.json["lanes"] == 2
    service.engine.lanes = 0
    lost = service.call("GET", "/readyz")
    assert lost.status == 503 and lost.json["status"] == "no device is left"
    service.engine.lanes, service.engine.hanging = 2, 1
    hung = service.call("GET", "/readyz")
    assert hung.status == 503 and (hung.json["status"], hung.json["hanging"]) == ("a lane hangs", 1)
    assert service.metric("driffusion_hanging") == 1
    assert service.metric("driffusion_costs_doubtful") == 0
    service.engine.costs_doubtful = True
    assert service.metric("driffusion_costs_doubtful") == 1
    service.engine.hanging, service.app.draining = 0, True
    assert service.call("GET", "/readyz").json["status"] == "draining"
    service.app.draining = False


def test_deadlines_count_from_the_headers(service: Service) -> None:
    before = time.perf_counter()
    assert service.generate(deadline_ms=60_000).status == 200
    assert before < service.engine.asked[-1]["since_s"] < time.perf_counter()


def test_metrics_count_what_happened(service: Service) -> None:
    route = 'route="/v1/images/generations"'
    names = {
        f'driffusion_http_requests_total{{{route},status="200"}}': 1,
        f'driffusion_http_requests_total{{{route},status="400"}}': 1,
        'driffusion_pictures_total{mode="tolerance"}': 2,
        'driffusion_stage_seconds_count{stage="denoise"}': 1,
        'driffusion_stage_seconds_count{stage="write"}': 1,
        "driffusion_drift_count": 2,
        "driffusion_accepted_total": 1,
        f"driffusion_http_request_seconds_count{{{route}}}": 2,
    }
    before = {name: service.metric(name) for name in names}
    service.generate(n=2, mode="tolerance", tolerance=0.01, lanes=2)
    service.generate(steps=0)
    assert {name: service.metric(name) - before[name] for name in names} == names
    assert service.metric('driffusion_lanes{state="usable"}') == 2
    kind = service.call("GET", "/metrics").headers["Content-Type"]
    assert kind.startswith("text/plain; version=0.0.4")


def test_strange_paths_are_one_label(service: Service) -> None:
    service.call("GET", "/a-path-that-nobody-has")
    text = service.call("GET", "/metrics").body.decode()
    assert "a-path-that-nobody-has" not in text and 'route="none",status="404"' in text


def test_every_request_is_a_line(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "driffusion_trt.access"):
        answer = service.call(
            "POST", "/v1/images/generations", b'{"prompt": "a fox", "steps": 3, "mode": "sequential"}',
            content_type="application/json", X_Request_ID="mine-1",
        )  # fmt: skip
        until(lambda: any("mine-1" in line for line in caplog.messages))
    assert answer.headers["X-Request-ID"] == "mine-1"
    line = json.loads(next(line for line in caplog.messages if "mine-1" in line))
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/images/generations", 200)
    assert (line["mode"], line["steps"], line["rounds"], line["lanes"]) == ("sequential", 3, 3, 2)
    assert line["bytes"] == len(answer.body) and line["ms"] > 0
    assert "fox" not in json.dumps(line), "prompts are not logged"


def test_no_line_has_the_id_of_a_picture(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has it may see the picture."""
    (name,) = service.store.put([b"picture"], "png")
    paths = (f"/v1/images/files/{name}", f"/v1//images/files/{name}", f"/x/{name}/y")
    with caplog.at_level(logging.INFO, "driffusion_trt.access"):
        for path in paths:
            service.call("GET", path)
        service.call("GET", paths[0], Origin="https://example.org")
        until(lambda: len(caplog.messages) == 4)
    assert name not in caplog.text
    assert json.loads(caplog.messages[0])["path"] == "/v1/images/files/{name}"


@pytest.mark.parametrize("given", ["x" * 65, "a b", "a\tb", "<script>"])
def test_a_request_id_that_is_odd_is_replaced(service: Service, given: str) -> None:
    assert service.call("GET", "/healthz", X_Request_ID=given).headers["X-Request-ID"] != given


def test_nothing_is_for_other_sites_by_default(service: Service) -> None:
    answer = service.call("GET", "/v1/models")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


# Keys and other sites


@pytest.fixture(scope="module")
def keyed(pipe: Pipeline) -> Iterator[Service]:
    with serving(pipe, keys=Keys(["secret", "other"]), origins=["https://example.org"]) as found:
        yield found


@pytest.mark.parametrize(
    "header", [None, "", "secret", "Bearer", "Bearer wrong", "Bearer secret2", "Basic secret", "Bearer s\xe9"]
)
def test_without_its_key_nothing_is_answered(keyed: Service, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/images/generations"), ("GET", "/metrics")):
        answer = keyed.call(method, path, **headers)
        error(answer, 401, "invalid_api_key")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_with_a_key_clients_are_the_users_of_it(keyed: Service) -> None:
    body = json.dumps({"prompt": "a fox", "steps": 2, "user": "u"})
    answer = keyed.call(
        "POST", "/v1/images/generations", body, content_type="application/json", Authorization="bearer other"
    )
    assert answer.status == 200
    assert [keyed.engine.asked[-1][name] for name in ("client", "user")] == ["key2", "u"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/page.js", "/openapi.json"])
def test_what_needs_no_key(keyed: Service, path: str) -> None:
    assert keyed.call("GET", path).status == 200


def test_a_page_of_another_site_has_no_key(keyed: Service) -> None:
    """So where keys are asked for, nobody has to say which names a proxy gives the service."""
    asked = {"Authorization": "Bearer secret", "Origin": "https://elsewhere.net", "Host": "pictures.net"}
    assert keyed.call("GET", "/v1/models", **asked).status == 200


def test_keys_are_asked_for_by_the_schema(keyed: Service, service: Service) -> None:
    document = keyed.call("GET", "/openapi.json").json
    assert document["security"] == [{"key": []}]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            needs = keyed.call(method.upper(), path).status == 401
            assert ("401" in operation["responses"]) == needs == (operation.get("security") != []), path
    assert "security" not in service.call("GET", "/openapi.json").json


def test_a_page_of_another_site_that_may(keyed: Service) -> None:
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    answer = keyed.call("OPTIONS", "/v1/images/generations", **asked)
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://example.org"
    stainless = "authorization, content-type, idempotency-key, x-stainless-lang, x-stainless-retry-count"
    answer = keyed.call(
        "OPTIONS", "/v1/images/generations", **asked, Access_Control_Request_Headers=stainless
    )
    assert answer.headers["Access-Control-Allow-Headers"] == stainless, "OpenAI's client for browsers"
    asked["Origin"] = "https://example.com"
    assert keyed.call("OPTIONS", "/v1/images/generations", **asked).status == 400


# Pages in a browser, without keys


@pytest.mark.parametrize(
    "origin", ["https://example.org", "null", "http://127.0.0.1:1", "http://", "http://["]
)
def test_a_form_of_another_site_makes_no_picture(service: Service, origin: str) -> None:
    """A browser sends it without asking: it is what forms could always send."""
    kind, body = multipart({"prompt": "a fox"}, {"image": b"x"})
    answer = service.call("POST", "/v1/images/edits", body, content_type=kind, Origin=origin)
    error(answer, 403, "unknown_origin")
    assert not service.engine.asked and "Access-Control-Allow-Origin" not in answer.headers


def test_pages_of_its_own_may(service: Service) -> None:
    assert service.call("GET", "/v1/models", Origin=service.url).status == 200
    named = f"localhost:{service.port}"
    assert service.call("GET", "/v1/models", Origin=f"http://{named}", Host=named).status == 200


def test_a_name_that_was_made_to_lead_here_is_refused(pipe: Pipeline) -> None:
    evil = ("evil.net", "evil.net:8000", "localhost.evil.net", "127.0.0.1.evil.net", "[", "a@b")
    own = (
        "localhost",
        "127.0.0.1",
        "[::1]",
        "LOCALHOST:80",
        "[::1]:8000",
        "pictures.net",
        "pictures.net:443",
    )
    public, other = "https://pictures.net", "https://example.org"
    hosts = ("localhost", "127.0.0.1", "::1")
    with serving(pipe, hosts=hosts, public_url=public, origins=[other]) as named:
        for host in evil:
            error(named.call("GET", "/v1/models", Host=host, Origin=f"http://{host}"), 403, "unknown_host")
            error(named.call("GET", "/", Host=host), 403, "unknown_host")
            assert named.call("GET", "/healthz", Host=host).status == 200
        for host in own:
            assert named.call("GET", "/v1/models", Host=host).status == 200, host
        for origin in (public, other):
            assert named.call("GET", "/v1/models", Origin=origin).status == 200
        error(named.call("GET", "/v1/models", Origin="https://example.net"), 403, "unknown_origin")


def test_only_a_proxy_that_was_named_says_whose_a_request_is(service: Service, pipe: Pipeline) -> None:
    body = json.dumps({"prompt": "a fox", "steps": 2, "response_format": "url"})
    forwarded = {"X_Forwarded_For": "192.0.2.7", "X_Forwarded_Proto": "https"}

    def client_of(one: Service) -> tuple[str, str]:
        answer = one.call(
            "POST", "/v1/images/generations", body, content_type="application/json", **forwarded
        )
        return one.engine.asked[-1]["client"], answer.json["data"][0]["url"].partition("://")[0]

    assert client_of(service) == ("127.0.0.1", "http")
    for proxies, expected in (
        (["127.0.0.0/8"], ("192.0.2.7", "https")),
        (["192.0.2.1"], ("127.0.0.1", "http")),
    ):
        with serving(pipe, proxies=proxies) as behind:
            assert client_of(behind) == expected


# What is refused before a body is read


def headers_alone(service: Service, path: str, kind: str) -> Answer:
    """What is answered before a byte of the body is there."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=DEADLINE_S)
    connection.putrequest("POST", path)
    for name, value in (("Content-Type", kind), ("Content-Length", "1000")):
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    found = Answer(response.status, response.headers, response.read())
    connection.close()
    return found


BODIES = {
    "/v1/images/generations": "application/json",
    "/v1/images/edits": "multipart/form-data; boundary=edge",
}


@pytest.mark.parametrize("path", BODIES)
def test_a_body_is_not_read_in_vain(service: Service, path: str) -> None:
    service.engine.gate.clear()
    with contextlib.ExitStack() as waiting:
        for _ in range(8):
            waiting.enter_context(open_request(service))
        until(lambda: len(service.engine.under_way) == 8)
        error(headers_alone(service, path, BODIES[path]), 429, "queue_full")
        service.engine.draining = True
        error(headers_alone(service, path, BODIES[path]), 503, "draining")
        service.engine.draining = False


def test_a_model_without_an_encoder_reads_no_picture(tmp_path: Path) -> None:
    folder = tiny.make_model_folder(tmp_path / "tiny")
    with Pipeline.load(folder, devices=1) as plain, serving(plain) as service:
        error(
            headers_alone(service, "/v1/images/edits", BODIES["/v1/images/edits"]),
            400,
            "not_supported_by_model",
        )


def test_an_upload_whose_client_left_is_not_taken_apart(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two are at a time, in threads of their own; others wait for their turn, and nothing waits for them."""
    go_on, taken = threading.Event(), []

    def held(headers: Any, body: bytes) -> Any:
        taken.append(len(body))
        assert go_on.wait(DEADLINE_S)
        return form_of(headers, body)

    monkeypatch.setattr("driffusion_trt.server.images.form_of", held)
    kind, body = multipart({"prompt": "a fox"}, {})
    head = f"POST /v1/images/edits HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
    request = f"{head}\r\n\r\n".encode() + body
    with (
        caplog.at_level(logging.INFO, "driffusion_trt.access"),
        service.connect() as one,
        service.connect() as two,
    ):
        for connection in (one, two):
            connection.sendall(request)
        until(lambda: len(taken) == 2)
        with service.connect() as leaving:
            leaving.sendall(request)
            until(lambda: service.bodies.held_bytes == 3 * len(body))
            assert service.generate().status == 200
        until(lambda: service.bodies.held_bytes == 2 * len(body))
        go_on.set()
        for connection in (one, two):
            assert b"image is missing" in read_until(connection, b"image is missing")
        until(lambda: any('"status": 499' in line for line in caplog.messages))
    assert len(taken) == 2


def test_a_form_of_boundaries_is_refused_before_it_is_taken_apart(service: Service) -> None:
    body = (
        b'--a\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
        + b"\r\n--ab" * 500_000
        + b"\r\n--a--\r\n"
    )
    answer = service.call("POST", "/v1/images/edits", body, content_type="multipart/form-data; boundary=a")
    assert "too many parts" in error(answer, 400, "invalid_form")["message"]


def test_pictures_go_when_their_time_is_over(pipe: Pipeline, tmp_path: Path) -> None:
    with serving(pipe, folder=tmp_path, limits=Limits(stored_s=0.3)) as service:
        service.store.put([b"picture"], "png")
        assert list(tmp_path.iterdir())
        until(lambda: not list(tmp_path.iterdir()))


# Clients that misbehave


def test_connections_have_a_bound(pipe: Pipeline) -> None:
    """On those beyond it only questions about health are answered; far beyond it they are closed."""
    with serving(pipe, limits=Limits(connections=3)) as service, contextlib.ExitStack() as held:
        idle = [held.enter_context(service.connect()) for _ in range(3)]
        until(lambda: service.open_connections() == 3)
        assert service.call("GET", "/healthz").status == 200
        answer = service.generate()
        error(answer, 503, "too_many_connections")
        assert (answer.headers["Retry-After"], answer.headers["Connection"]) == ("1", "close")
        assert not service.engine.asked
        far = [held.enter_context(service.connect()) for _ in range(60)]
        until(lambda: service.open_connections() <= 35)
        assert sum(closed(connection) == b"" for connection in far) == 60, "none stays for long"
        idle.pop().close()
        until(lambda: service.open_connections() < 3)
        assert service.generate().status == 200
        assert service.metric("driffusion_connections_refused_total") >= 1 + 60 - 32


@pytest.fixture(scope="module")
def strict(pipe: Pipeline) -> Iterator[Service]:
    """One with little patience."""
    limits = Limits(
        header_s=2, body_s=2, stall_s=2, read_rate=1 << 20, body_bytes=1000, upload_bytes=2000, connections=20
    )
    with serving(pipe, limits=limits) as found:
        yield found


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_given_up(
    service: Service, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    service.engine.gate.clear()
    with caplog.at_level(logging.INFO, "driffusion_trt.access"):
        connection = open_request(service, stream=stream)
        until(lambda: service.engine.under_way)
        (ticket,) = service.engine.under_way
        connection.close()
        until(ticket.cancelled.is_set)
        until(lambda: not service.engine.under_way)
        until(lambda: any(ticket.id in line for line in caplog.messages))
    line = json.loads(next(line for line in caplog.messages if ticket.id in line))
    assert line["status"] == 499 and line["gone"]
    service.engine.gate.set()
    assert service.generate().status == 200


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nX-Slow: "],
    ids=["none", "the first of them"],
)
def test_slow_headers_are_cut_off(strict: Service, sent: bytes) -> None:
    with strict.connect() as connection:
        start = time.monotonic()
        connection.sendall(sent)
        for _ in range(100):  # a byte now and then gives no more time
            time.sleep(0.1)
            try:
                connection.sendall(b"a" if sent else b"")
                connection.settimeout(0.05)
                if connection.recv(10) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("the connection is still open")
    assert time.monotonic() - start < 30
    assert strict.generate().status == 200


def test_a_slow_body_is_refused(strict: Service) -> None:
    with strict.connect() as connection:
        connection.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        assert closed(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_as_soon_as_it_is(strict: Service, chunked: bool) -> None:
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with strict.connect() as connection:
        if chunked:
            part = b"400\r\n" + b"x" * 1024 + b"\r\n"
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + part)
        else:
            connection.sendall(head + b"Content-Length: 1000000000\r\n\r\n")
        assert closed(connection).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_reads_nothing_or_nearly_is_cut_off(strict: Service) -> None:
    """One that reads slowly is not."""
    (name,) = strict.store.put([bytes(16 << 20)], "png")
    request = f"GET /v1/images/files/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with strict.connect() as idle, strict.connect() as slow, strict.connect(1 << 14) as crawling:
        for connection in (idle, slow, crawling):
            connection.sendall(request)
        until(lambda: strict.open_connections() == 3)
        found = 0
        while strict.open_connections() > 1:
            found += len(slow.recv(1 << 17))
            with contextlib.suppress(ConnectionResetError):
                crawling.recv(1 << 12)
            time.sleep(0.02)
        while found < 16 << 20 and (data := slow.recv(1 << 20)):
            found += len(data)
        assert found >= 16 << 20
        assert len(closed(idle)) < 16 << 20
        assert len(closed(crawling)) < 1 << 20, "it would have been all, had it stayed"


def test_a_slow_reader_of_a_stream_does_not_hold_up_the_sampler(service: Service) -> None:
    with open_request(service, stream=True, partial_images=100, steps=40, mode="sequential") as connection:
        until(lambda: service.engine.tickets and not service.engine.under_way)
        assert b"image_generation.completed" in read_until(connection, b"image_generation.completed")


def test_bytes_that_are_no_http(strict: Service) -> None:
    for noise in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\0" * 100, b"PRI * HTTP/2.0\r\n\r\n"):
        with strict.connect() as connection:
            connection.sendall(noise + b"\r\n\r\n")
            assert closed(connection)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 404")
    assert strict.generate().status == 200


def test_a_full_disk_is_told(pipe: Pipeline, tmp_path: Path) -> None:
    with serving(pipe, folder=tmp_path) as service:
        with nearly_full(100):
            error(service.generate(response_format="url"), 507, "disk_full")
            assert service.generate().status == 200, "other requests go on"
        assert list(tmp_path.iterdir()) == []
        assert service.generate(response_format="url").status == 200
