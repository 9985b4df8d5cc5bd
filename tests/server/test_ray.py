"""`serve --ray` on a cluster of two nodes of this machine, one of which is killed under load."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from openai import OpenAI
from PIL import Image

from bench.served import Child
from driffusion_trt import Pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Ray's own, of processes that it starts and ends.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
KEY = "sesame-0123456789"
WAIT_S = 120.0
STORE_BYTES = 100 << 20
REQUEST = {"prompt": "a red fox left of a blue star", "steps": 10, "mode": "sequential"}


class Cluster:
    """Nodes as processes of this machine; `other` is the one that is not the head."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster as Inside

        self.folder, self.inside = folder, Inside()
        Path("/tmp/ray").mkdir(exist_ok=True)  # where Ray notes the head, whatever folder it has
        self.other: Any = None
        self.serving: Process | None = None
        self._start(temp_dir=str(folder), include_dashboard=False)

    def _start(self, **how: Any) -> Any:
        """A node; once more where a busy machine took longer than the 30 seconds that Ray gives it."""
        for last in (False, False, True):
            before = {one.pid for one in self.processes()}
            try:
                return self.inside.add_node(num_cpus=1, object_store_memory=STORE_BYTES, **how)
            except Exception as error:
                if last or "timed out during startup" not in str(error):
                    raise
                for one in self.processes():
                    if one.pid not in before:
                        one.kill()

    def add(self) -> None:
        self.other = self._start()

    def kill(self) -> None:
        self.inside.remove_node(self.other, allow_graceful=False)

    def logged(self) -> list[dict[str, Any]]:
        """What replicas' logs have of requests."""
        logs = (self.folder / "session_latest" / "logs").glob("worker-*.err")
        lines = [line for log in logs for line in log.read_text().splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]

    def made(self) -> set[str]:
        """Ids of requests that replicas answered with pictures."""
        return {one["ticket"] for one in self.logged() if one["status"] == 200 and "ticket" in one}

    def processes(self) -> list[psutil.Process]:
        """What belongs to it. Ray's workers do not name their folder, but have their logs open in it."""
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = " ".join(one.cmdline())
                names = [line] if not line.startswith("ray::") else [file.path for file in one.open_files()]
                if any(str(self.folder) in name for name in names):
                    found.append(one)
        return found

    def called(self, title: str) -> list[psutil.Process]:
        """Those whose titles, which Ray gives to its workers, begin so."""
        found = []
        for one in self.processes():
            with contextlib.suppress(psutil.Error):
                if " ".join(one.cmdline()).startswith(title):
                    found.append(one)
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    before = dict(os.environ)
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    folder = Path(tempfile.mkdtemp(prefix="dt-", dir="/tmp"))  # names of sockets are short
    found: Cluster | None = None
    try:
        found = Cluster(folder)
        found.add()
        yield found
        assert not [
            path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()
        ]
    finally:
        if found is not None:
            found.inside.shutdown()
            until(lambda: not found.processes())
        shutil.rmtree(folder)
        os.environ.clear()
        os.environ |= before


def until(holds: Any, within_s: float = WAIT_S) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.1)


@dataclass
class Answer:
    """What a client got, once."""

    seed: int
    status: int
    replica: str | None
    value: Any
    headers: dict[str, str]
    began: float = 0.0


class Process(Child):
    """`driffusion-trt serve --ray` on the cluster."""

    def __init__(self, cluster: Cluster, *words: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        address = ("--ray-address", cluster.inside.address)
        super().__init__("serve", "--ray", "--port", str(self.port), *address, *words)

    def said(self, text: str) -> bool:
        assert self.alive or text in "".join(self.lines), "".join(self.lines)
        return any(text in line for line in list(self.lines))

    def call(self, method: str, path: str, fields: Any = None) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
            connection.request(method, path, None if fields is None else json.dumps(fields), headers)
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return response.status, told, response.read()
        finally:
            connection.close()

    def generate(self, seed: int, **more: Any) -> Answer:
        began = time.monotonic()
        status, headers, data = self.call("POST", "/v1/images/generations", {**REQUEST, "seed": seed, **more})
        replica = headers.get("x-driffusion-replica")
        return Answer(seed, status, replica, json.loads(data), headers, began)

    def replicas(self) -> set[str]:
        """That answer at present."""
        return {self.call("GET", "/healthz")[1].get("x-driffusion-replica", "") for _ in range(12)} - {""}


@contextlib.contextmanager
def running(cluster: Cluster, *words: str) -> Iterator[Process]:
    if cluster.serving is not None:  # of a test that was not there to end it
        cluster.serving.end(WAIT_S)
    found = cluster.serving = Process(cluster, *words)
    try:
        until(lambda: found.said("http://"))
        yield found
    finally:
        found.end(WAIT_S)


@pytest.fixture(scope="module")
def service(cluster: Cluster, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One replica on each node, of the bundled model by way of storage."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(KEY + "\n")
    model = f"file://{root}/driffusion_trt/demo"
    with running(cluster, "--model", model, "--replicas", "2", "--api-key-file", str(keys)) as found:
        until(lambda: len(found.replicas()) == 2)
        yield found


@dataclass
class Load:
    """Clients that ask for one picture after another, each once, until they are told to stop."""

    service: Process
    clients: int
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(k,)) for k in range(self.clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(WAIT_S)
        assert not any(thread.is_alive() for thread in self._threads), "a request has no answer"

    def _ask(self, client: int) -> None:
        seed = 100_000 * (client + 1)
        while not self._stop.is_set():
            seed += 1
            try:
                self.answers.append(self.service.generate(seed))
            except (OSError, HTTPException) as error:
                self.failures.append(f"{seed}: {error!r}")
                return

    def made(self) -> list[Answer]:
        return [one for one in list(self.answers) if one.status == 200]

    def by_replica(self) -> Counter[str | None]:
        return Counter(one.replica for one in self.made())


def picture_of(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def test_the_api_is_the_same_as_without(service: Process) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key=KEY, max_retries=0)
    assert [model.id for model in client.models.list()] == ["demo"]
    found = client.images.generate(model="demo", prompt="a fox", extra_body={"steps": 4, "seed": 1})
    assert picture_of(found.data[0].b64_json).shape == (64, 64, 3)
    with client.images.generate(
        model="demo",
        prompt="a fox",
        stream=True,
        partial_images=2,
        extra_body={"steps": 8, "mode": "sequential"},
    ) as events:
        kinds = Counter(event.type for event in events)
    assert kinds == {"image_generation.partial_image": 2, "image_generation.completed": 1}
    assert "text/html" in service.call("GET", "/")[1]["content-type"]
    assert service.call("GET", "/readyz")[0] == 200
    status, headers, _ = service.call("POST", "/v1/images/generations", {"prompt": 7})
    assert status == 400 and re.fullmatch(r"[\w-]+", headers["x-request-id"])


def test_keys_are_asked_for(service: Process) -> None:
    connection = HTTPConnection("127.0.0.1", service.port, timeout=WAIT_S)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 401
    connection.close()


def test_a_client_of_this_machine_cannot_say_that_it_is_another(cluster: Cluster, service: Process) -> None:
    connection = HTTPConnection("127.0.0.1", service.port, timeout=WAIT_S)
    name = f"another-{time.time_ns()}"
    headers = {"Authorization": f"Bearer {KEY}", "X-Forwarded-For": "203.0.113.7", "X-Request-ID": name}
    connection.request("GET", "/v1/models", headers=headers)
    assert connection.getresponse().status == 200
    connection.close()
    until(lambda: [one["client"] for one in cluster.logged() if one["id"] == name] == ["127.0.0.1"], 20)


def test_links_are_refused_before_any_work(service: Process) -> None:
    found = service.generate(1, response_format="url")
    assert found.status == 400 and "--output-dir" in found.value["error"]["message"]


def test_one_scrape_has_the_metrics_of_both(service: Process) -> None:
    names = service.replicas()

    def seen() -> bool:
        return names <= set(
            re.findall(r'driffusion_running{replica="(\w+)"}', service.call("GET", "/metrics")[2].decode())
        )

    until(seen)


def test_a_client_that_leaves_frees_its_replica(cluster: Cluster, service: Process) -> None:
    body = json.dumps({**REQUEST, "steps": 200, "n": 8}).encode()
    name = f"leaves-{time.time_ns()}"
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        client.sendall((head + kind + f"X-Request-ID: {name}\r\n\r\n").encode() + body)
        until(lambda: sorted(_of_replicas(service, "running")) == [0, 1])
    until(lambda: sum(_of_replicas(service, 'failures_total{reason="cancelled"')) == 1)
    until(lambda: _of_replicas(service, "running") == [0, 0])
    (line,) = [one for one in cluster.logged() if one["id"] == name]
    assert line["status"] == 499


def _of_replicas(service: Process, name: str) -> list[int]:
    """A metric of each, which of the one that is not asked is a few seconds old."""
    begin = re.escape(f"driffusion_{name}") + (r"," if "{" in name else r"\{")
    text = service.call("GET", "/metrics")[2].decode()
    return [int(count) for count in re.findall(begin + r'replica="\w+"} (\d+)', text)]


def test_a_second_service_is_refused(cluster: Cluster, service: Process) -> None:
    other = Process(cluster, "--replicas", "1")
    try:
        assert other.process.wait(WAIT_S) == 2
        until(lambda: other.said("Ray Serve is at work on this cluster already"))
        assert len(other.lines) == 1
    finally:
        other.end(WAIT_S)


def test_a_killed_node_costs_no_request_its_answer(cluster: Cluster, service: Process) -> None:
    retrying = OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key=KEY, max_retries=5)
    pictures: list[np.ndarray] = []

    def patient() -> None:
        for seed in range(1, 41):
            body = {"seed": seed, "steps": 10, "mode": "sequential"}
            found = retrying.images.generate(model="demo", prompt=REQUEST["prompt"], extra_body=body)
            pictures.append(picture_of(found.data[0].b64_json))

    client = threading.Thread(target=patient)
    with Load(service, 8) as load:
        client.start()
        until(lambda: [count >= 10 for count in load.by_replica().values()] == [True, True])
        before = {one.replica for one in load.made()}
        cluster.kill()
        killed = time.monotonic()
        until(lambda: sum(one.began > killed for one in load.made()) >= 60)
        client.join(WAIT_S)
    assert len(before) == 2 and load.failures == []
    lost = [one for one in load.answers if one.status != 200]
    assert 1 <= len(lost) <= 2 * load.clients, "the load was on both nodes"
    assert {one.value["error"]["code"] for one in lost} == {"replica_lost"}
    assert all(one.status == 503 and one.headers["retry-after"] == "1" for one in lost)
    ids = [one.value["details"]["id"] for one in load.made()]
    assert len(ids) == len(set(ids)), "none was made twice"
    late = {one.replica for one in load.made() if one.began > killed + 30}
    assert len({one.replica for one in load.made()[-20:]} | late) == 1, "the replica that is left"
    assert len(pictures) == 40, "a client that asks again has all its pictures"
    print(f"{len(load.answers)} answers, {len(lost)} of them 503 replica_lost")
    with Pipeline.load("demo", devices=1) as pipe:
        for one in [*load.made()[:5], *load.made()[-5:]]:
            result = pipe(REQUEST["prompt"], steps=10, mode="sequential", seed=[one.seed])
            assert np.array_equal(picture_of(one.value["data"][0]["b64_json"]), np.asarray(result.images[0]))


def test_a_node_that_joins_gets_a_replica_again(cluster: Cluster, service: Process) -> None:
    cluster.add()
    until(lambda: len(service.replicas()) == 2)
    assert service.said("replicas: 1 running, 1 starting")


def test_the_end_answers_what_was_accepted(cluster: Cluster, service: Process) -> None:
    before = cluster.made()
    with Load(service, 6) as load:
        until(lambda: len(load.made()) >= 6)
        assert service.end() == 0
    assert service.lines[-1].startswith("no more requests are taken")
    told = {one.value["error"]["code"] for one in load.answers if one.status != 200}
    assert told <= {"draining"}
    ids = {one.value["details"]["id"] for one in load.made()}
    assert len(ids) >= 6 and cluster.made() - before == ids, "who was accepted has an answer"
    # What the others find, who ask without a pause, is that the listener goes, maybe amid a 503.
    assert len(load.failures) == load.clients
    noise = [
        line
        for line in service.lines
        if not re.match(r"(the model|a replica has|replicas: |demo: |no more)", line)
    ]
    assert noise == [] or all("file://" in line for line in noise), noise


def test_a_second_signal_leaves_nothing_on_the_cluster(cluster: Cluster) -> None:
    """Though a request is under way."""
    with running(cluster, "--replicas", "1") as service, ThreadPoolExecutor(1) as client:
        client.submit(service.generate, 1, steps=200, n=4)
        until(lambda: _of_replicas(service, "running") == [1])
        service.signal(signal.SIGTERM)
        until(lambda: service.said("no more requests are taken"))
        assert service.end() == 128 + signal.SIGTERM
    until(lambda: cluster.called("ray::Serve") == [])


def test_the_load_decides_how_many_there_are(cluster: Cluster) -> None:
    words = (
        "--replicas",
        "1:2",
        "--target-requests",
        "1",
        "--scale-up-after",
        "1",
        "--scale-down-after",
        "2",
    )
    with running(cluster, *words) as service:
        with Load(service, 6):
            until(lambda: service.said("replicas: 2 running"))
        until(lambda: service.lines[-1].startswith("replicas: 1 running\n"))


def test_without_a_replica_requests_wait_for_one(cluster: Cluster) -> None:
    """Up to --queue of them; more are told to come later."""
    with running(cluster, "--replicas", "1", "--queue", "2") as service:
        (replica,) = cluster.called("ray::ServeReplica")
        replica.kill()
        until(lambda: "running" not in service.lines[-1])  # all have heard of it then
        with ThreadPoolExecutor(8) as clients:
            found = list(clients.map(service.generate, range(1, 9)))
        assert service.generate(9).status == 200
    told = Counter((one.status, one.value.get("error", {}).get("code")) for one in found)
    assert set(told) <= {(200, None), (503, "no_replica"), (429, "queue_full")}
    assert told[200, None] >= 1 and told[503, "no_replica"] >= 1, told


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("--cpus-per-replica 64", 2, "0 GPUs and 64 CPUs of one node"),
        ("--gpus-per-replica 1", 2, "the cluster have: 0 GPUs and 1 CPUs; 0 GPUs and 1 CPUs"),
        ("--model file:///nothing/here", 1, "file:///nothing/here is not a model folder"),
        ("--output-dir /nothing/here", 2, "pictures cannot be kept in /nothing/here"),
    ],
)
def test_what_cannot_be_is_one_paragraph(cluster: Cluster, words: str, status: int, said: str) -> None:
    service = Process(cluster, *words.split())
    try:
        assert service.process.wait(WAIT_S) == status
        until(lambda: service.said(said))
        assert not any("Traceback" in line for line in service.lines)
    finally:
        service.end(WAIT_S)
