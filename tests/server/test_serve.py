"""`driffusion-trt serve` as a process: what it refuses, and that its end loses no request."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import tiny
from httpd import DEADLINE_S, until

from bench.served import Child, Served, served
from driffusion_trt._address import listening_at
from driffusion_trt.cli import main, parse
from driffusion_trt.commands._console import Console
from driffusion_trt.commands._serving import _hosts, _how


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """As they were: the command lets them write to what stderr is while a test runs."""
    names = ("driffusion_trt", "driffusion_trt.access", "uvicorn.error")
    found = [logging.getLogger(name) for name in names]
    kept = [(list(one.handlers), one.level, one.propagate) for one in found]
    yield
    for one, (handlers, level, propagate) in zip(found, kept, strict=True):
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


# Misuse


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--max-images 0", "--max-images must be a number above 0, not 0"),
        ("--body-timeout nan", "--body-timeout must be a number above 0, not nan"),
        ("--drain-timeout 0", "--drain-timeout must be above 0"),
        ("--cors-origin example.org", "--cors-origin takes origins such as https://example.org"),
        ("--cors-origin https://example.org/path", "not 'https://example.org/path'"),
        ("--allowed-host a,,b", "--allowed-host takes names such as pictures.example.org"),
        ("--allowed-host http://a", "without ports, not 'http://a'"),
        ("--trusted-proxy 10.0.0.1/8", "--trusted-proxy takes addresses and networks such as 10.0.0.0/8"),
        ("--trusted-proxy *", "not '*'"),
        ("--read-rate 0", "--read-rate must be a number above 0"),
        ("--max-held-bytes 0", "--max-held-bytes must be a number above 0"),
        ("--hang-timeout nan", "--hang-timeout must be a number above 0, not nan"),
        ("--max-seconds 0", "--max-seconds must be a number above 0"),
        ("--queue 2000", "queue must be a whole number from 1 to 1024"),
        ("--public-url ftp://x", "--public-url must begin with http:// or https://"),
        ("--api-key-file missing.txt", "the file of API keys missing.txt cannot be read"),
        ("--api-key-file empty.txt", "empty.txt has no API keys"),
        ("--api-key-file spaces.txt", "an API key must be printable ASCII without spaces"),
        ("--output-dir missing", "pictures cannot be kept in missing"),
        ("--served-name a,,b", "has an empty name in it"),
        ("--port 99999", "the service cannot listen at 127.0.0.1:99999"),
        ("--host no.such.host.invalid", "the service cannot listen at no.such.host.invalid"),
        ("--replicas 2", "--replicas is for replicas on a cluster; add --ray"),
        ("--ray --replicas 3:2", "--replicas is a number from 1 on, or two such as 1:8, not '3:2'"),
        ("--ray --replicas 0", "--replicas is a number from 1 on"),
        ("--ray --cpus-per-replica 0", "--cpus-per-replica must be at least 1, not 0"),
        ("--ray --gpus-per-replica -1", "--gpus-per-replica must be at least 0, not -1"),
        ("--ray --target-requests 0", "--target-requests must be a number above 0, not 0"),
        ("--ray --scale-up-after nan", "--scale-up-after must be a number above 0, not nan"),
        ("--ray --proxies all", "--proxies is head or every, not 'all'"),
        ("--ray --devices 2", "say --gpus-per-replica or --cpus-per-replica"),
        ("--ray --stall-timeout 9", "with --ray Ray's listens"),
        ("--ray --port 0", "with --ray --port is a number from 1 to 65535, not 0"),
        ("--ray --read-rate 9", "with --ray Ray's listens"),
        ("--ray --trusted-proxy *", "not '*'"),
        ("--model s3://k:secret@b/x --served-name x", "the address s3://... has a user or a password"),
        ("--ray --model s3://b/x?sig=1 --served-name x", "the address s3://... has a ? or # in it"),
        ("--fp32-model s3://b/x?sig=1 --served-name x", "the address s3://... has a ? or # in it"),
        ("--model s3://b/x --nan-policy retry-fp32", "needs --fp32-model where --model is an address"),
        ("--model nonsense://x", "--model nonsense://x cannot be read: Protocol not known"),
        ("--prot 1", "serve has no option --prot; did you mean '--port'?"),
        ("demo-xl", "serve takes no 'demo-xl'"),
    ],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_misuse_is_refused_before_any_work(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("# none\n\n")
    Path("spaces.txt").write_text("two words\n")
    assert main(["serve", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count("\n") == 1 and out == ""


def test_an_address_that_is_taken_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "Address already in use" in capsys.readouterr().err


def test_a_model_that_is_missing_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", "./missing"]) == 1
    assert "there is no folder missing" in capsys.readouterr().err


def test_the_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("driffusion_trt.commands._serving.find_spec", lambda name: None)
    assert main(["serve"]) == 1
    assert "pip install '.[serve]'" in capsys.readouterr().err


def test_the_missing_ray_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("driffusion_trt.commands._serving_ray.find_spec", lambda name: None)
    assert main(["serve", "--ray"]) == 1
    assert "ray is needed here and is not installed; run: pip install '.[ray]'" in (capsys.readouterr().err)


def test_rays_other_proxy_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert main(["serve", "--ray"]) == 2
    assert "RAY_SERVE_ENABLE_HA_PROXY=1 is set" in capsys.readouterr().err


# The process


class Client(threading.Thread):
    """One request in a thread of its own, and what came of it."""

    def __init__(self, process: Served, **fields: Any) -> None:
        super().__init__()
        self.process, self.fields = process, fields
        self.status: int | None = None
        self.value: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.status, self.value = self.process.generate(**self.fields)
        except OSError as error:
            self.value = error


def test_sigterm_under_load_loses_no_request(model: str) -> None:
    with served("--model", model, "--devices", "2") as service:
        assert service.call("GET", "/v1/models")[1]["data"][0]["id"] == "tiny"
        clients = [Client(service, steps=150, mode="sequential", seed=seed) for seed in range(12)]
        until(lambda: sum(service.call("GET", "/readyz")[1][name] for name in ("queued", "running")) >= 4)
        service.signal(signal.SIGTERM)
        late: list[Any] = []
        while service.alive:
            try:
                late.append((service.generate()[0], service.call("GET", "/readyz")))
            except OSError as error:
                late.append(error)
            time.sleep(0.02)
        for client in clients:
            client.join(DEADLINE_S)
        assert service.ended() == 0
    statuses = [client.status for client in clients]
    assert set(statuses) <= {200, 503, None}
    made = [client for client in clients if client.status == 200]
    assert len(made) >= 4, statuses
    for client in clients:
        if client.status == 503:
            assert client.value["error"]["code"] == "draining"
    told = [one for one in late if isinstance(one, tuple)]
    assert all(status == 503 for status, _ in told)
    assert all(ready[0] == 503 and ready[1]["status"] == "draining" for _, ready in told)
    lines = [json.loads(line) for line in service.lines if line.startswith("{")]
    accepted = [line for line in lines if "ticket" in line]
    assert [line for line in accepted if line["status"] != 200] == [], "what was accepted is made"
    tickets = [line["ticket"] for line in accepted]
    assert len(tickets) == len(set(tickets)) == len(made), "every accepted request was answered, once"
    assert {client.value["details"]["id"] for client in made} == set(tickets)
    assert not [line for line in service.lines if "Traceback" in line]


def test_the_work_of_a_request_is_bounded() -> None:
    """Whatever the model; by itself to ten minutes of one lane."""
    assert _how(parse(["serve"]))["most_s"] == 600.0
    assert _how(parse(["serve", "--max-seconds", "5"]))["most_s"] == 5.0
    assert _how(parse(["serve"]))["most_area"] is None, "--max-pixels says it"


def test_the_address_is_told_once_it_is_there(model: str) -> None:
    """What reads the line may connect. Loading, warming up and measuring come first, and are told."""
    service = Child("serve", "--port", "0", "--model", model, "--devices", "1")
    try:
        until(lambda: any("http://" in line for line in list(service.lines)))
        told = list(service.lines)
        assert told[0] == "loading tiny; the service listens once it is warmed up and measured\n"
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", told[-1])
        assert found, told
        connection = HTTPConnection("127.0.0.1", int(found[1]), timeout=DEADLINE_S)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        service.kill()


def test_an_end_has_an_end(model: str) -> None:
    """What is not there by --drain-timeout is given up, and told so."""
    with served("--model", model, "--devices", "1", "--drain-timeout", "0.1") as service:
        clients = [Client(service, steps=200, n=8, mode="sequential") for _ in range(16)]
        until(lambda: sum(service.call("GET", "/readyz")[1][name] for name in ("queued", "running")) >= 12)
        service.signal(signal.SIGTERM)
        for client in clients:
            client.join(DEADLINE_S)
        assert service.ended() == 0
    assert any(client.status == 503 for client in clients), [client.status for client in clients]


def test_without_keys_it_is_for_this_machine_s_own_pages(model: str) -> None:
    """As its options make it; with --allowed-host and with keys others may."""

    def asked(service: Served, host: str) -> int:
        connection = HTTPConnection("127.0.0.1", service.port, timeout=DEADLINE_S)
        connection.request("GET", "/v1/models", headers={"Host": host, "Authorization": "Bearer secret"})
        status = connection.getresponse().status
        connection.close()
        return status

    for words, expected in (
        ((), {"localhost": 200, "127.0.0.1:1": 200, "evil.net": 403, "pictures.net": 403}),
        (("--host", "127.1"), {"localhost": 200, "127.0.0.1:1": 200, "127.1": 200, "evil.net": 403}),
        (("--host", "LOCALHOST"), {"localhost": 200, "evil.net": 403}),
        (("--host", "0.0.0.0"), {"localhost": 200, "evil.net": 200}),
        (("--allowed-host", "pictures.net"), {"localhost": 200, "evil.net": 403, "pictures.net": 200}),
        (("--api-key", "secret"), {"localhost": 200, "evil.net": 200}),
    ):
        with served("--model", model, "--devices", "1", *words) as service:
            assert {host: asked(service, host) for host in expected} == expected
            warned = any("warning: whoever can reach 0.0.0.0" in line for line in service.lines)
            assert warned == ("0.0.0.0" in words), "it is open to others"


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("fe80::1%eth0", False),
        ("::ffff:192.0.2.1", False),
    ],
)
def test_what_it_listens_at_decides_who_may(
    address: str, loopback: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _hosts("spelt", address, ("named",), False, Console())
    assert found == (("localhost", "127.0.0.1", "::1", "spelt", address, "named") if loopback else ("named",))
    assert ("asks for no key" in capsys.readouterr().err) != loopback
    assert _hosts("spelt", address, (), True, Console()) == ()
    assert capsys.readouterr().err == "", "with keys nothing is to say"


def test_an_address_of_version_6_stands_in_brackets() -> None:
    assert listening_at("127.0.0.1", 80) == "http://127.0.0.1:80/"
    assert listening_at("::1", 8000) == "http://[::1]:8000/"


def test_a_second_signal_ends_a_start_as_well(model: str) -> None:
    """Of a model that takes long to warm up, or never does."""
    process = subprocess.Popen(
        [sys.executable, "-c", WARMING, "--port", "0", "--model", model, "--devices", "1"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert any("warms up" in line for line in process.stderr)
        os.kill(process.pid, signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


WARMING = """
import sys, time
from driffusion_trt.cli import main
from driffusion_trt.server.orders import PipelineShop

def opened(self):
    print("it warms up", file=sys.stderr, flush=True)
    time.sleep(60)

PipelineShop.open = opened
sys.exit(main(["serve", *sys.argv[1:]]))
"""


# Lanes of this one hang in pictures with guidance, once it is ready.
HANGING = """
import sys, threading
from driffusion_trt.cli import main
from driffusion_trt.runtime.host_job import _Call
from driffusion_trt.server.engine import Engine

enter = Engine.__aenter__

async def entered(self):
    await enter(self)
    _Call.work = lambda *_: threading.Event().wait()
    return self

Engine.__aenter__ = entered
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_an_end_comes_though_a_lane_hangs(model: str, signals: int) -> None:
    """By --drain-timeout, or without one at the second signal."""
    words = ["--model", model, "--devices", "1", *(["--drain-timeout", "0.3"] if signals == 1 else [])]
    with served(*words, python=("-c", HANGING)) as service:
        client = Client(service, steps=4, mode="sequential", guidance_scale=3.0)
        until(lambda: service.call("GET", "/readyz")[1]["running"])
        service.signal(signal.SIGTERM)
        if signals == 2:
            until(lambda: service.call("GET", "/readyz")[0] == 503)
            assert service.alive
            service.signal(signal.SIGTERM)
            assert service.ended(2) == 128 + signal.SIGTERM
        else:
            assert service.ended(DEADLINE_S) == 0
        client.join(DEADLINE_S)
        assert client.status == (503 if signals == 1 else None)


def test_a_device_that_fails_at_the_start_is_one_paragraph(model: str) -> None:
    code = """
import sys
from driffusion_trt._errors import LaneError
from driffusion_trt.cli import main
from driffusion_trt.pipeline import Pipeline

def broken(*_):
    raise LaneError("lane 0 of 1 failed: no memory")

Pipeline.warm_up = broken
sys.exit(main(["serve", "--port", "0", *sys.argv[1:]]))
"""
    words = ["--model", model, "--devices", "1"]
    found = subprocess.run(
        [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert found.returncode == 1
    assert "Traceback" not in found.stderr and "lane 0 of 1 failed: no memory" in found.stderr


def test_keys_from_a_file_and_pictures_in_a_folder(model: str, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("# ours\nsecret\n")
    (tmp_path / "pictures").mkdir()
    words = ("--api-key-file", str(tmp_path / "keys.txt"), "--output-dir", str(tmp_path / "pictures"))
    with served("--model", model, "--devices", "1", "--served-name", "mine,demo", *words) as service:
        assert service.generate()[0] == 401
        connection = HTTPConnection("127.0.0.1", service.port, timeout=DEADLINE_S)
        body = json.dumps({"prompt": "a fox", "steps": 2, "model": "demo", "response_format": "url"})
        headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"}
        connection.request("POST", "/v1/images/generations", body, headers)
        url = json.loads(connection.getresponse().read())["data"][0]["url"]
        (file,) = (tmp_path / "pictures").iterdir()
        connection.request("GET", "/" + url.split("/", 3)[3])
        assert connection.getresponse().read() == file.read_bytes()
        connection.close()
        assert service.end() == 0
    assert "secret" not in "".join(service.lines)


def test_a_model_of_storage_is_served_by_its_own_name(model: str) -> None:
    with served("--model", f"file://{model}", "--devices", "1") as service:
        assert service.call("GET", "/v1/models")[1]["data"][0]["id"] == "tiny"
        assert service.generate()[0] == 200
