"""The examples in `examples/`, over a real engine; what they are built into is stood in for."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

import driffusion_trt as dt
from driffusion_trt._kept_costs import KeptCosts
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.planning.costs import Costs
from driffusion_trt.runtime.host_job import _Call

PROMPT = "a red fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeptCosts, "read", lambda *_: Costs(2, (10.0, 19.0)))


def loaded(path: Path, patch: pytest.MonkeyPatch, **modules: ModuleType) -> ModuleType:
    """An example, with these modules in place of what it is built into."""
    for name, module in modules.items():
        patch.setitem(__import__("sys").modules, name, module)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def held(patch: pytest.MonkeyPatch) -> threading.Event:
    """Predictions wait until it is set."""
    go_on, call = threading.Event(), _Call.work

    def waits(self: _Call, lane: int) -> None:
        assert go_on.wait(20)
        call(self, lane)

    patch.setattr(_Call, "work", waits)
    return go_on


# FastAPI


class FastAPI:
    """The part of FastAPI that the example uses."""

    def __init__(self, lifespan: Any) -> None:
        self.lifespan, self.state, self.routes = lifespan, SimpleNamespace(), {}

    def post(self, path: str) -> Callable[[Any], Any]:
        return lambda function: self.routes.setdefault(path, function)

    get = post


class HTTPException(Exception):
    def __init__(self, status_code: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status_code, self.headers = status_code, headers or {}


class Response:
    def __init__(
        self,
        content: bytes = b"",
        status_code: int = 200,
        headers: dict[str, str] | None = None,
        media_type: str = "",
    ) -> None:
        self.body, self.status_code, self.headers = content, status_code, headers or {}
        self.media_type = media_type


class Http:
    """A request; its client leaves once `gone` is set."""

    def __init__(self, app: FastAPI) -> None:
        self.app, self.client, self.gone = app, SimpleNamespace(host="127.0.0.1"), False

    async def is_disconnected(self) -> bool:
        return self.gone


@pytest.fixture
def service(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    fake: Any = ModuleType("fastapi")
    fake.FastAPI, fake.HTTPException, fake.Response, fake.Request = FastAPI, HTTPException, Response, Http
    monkeypatch.setenv("PICTURES_MODEL", str(folder))
    return loaded(root / "examples" / "fastapi_service.py", monkeypatch, fastapi=fake)


def served(service: Any, work: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        async with service.app.lifespan(service.app):
            return await work(service.app)

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_fastapi_makes_a_picture(service: Any) -> None:
    async def work(app: FastAPI) -> Any:
        assert (await app.routes["/readyz"](Http(app))).status_code == 200
        return await app.routes["/pictures"](Http(app), PROMPT, seed=3, steps=4)

    answer = served(service, work)
    assert answer.status_code == 200 and answer.media_type == "image/png"
    assert Image.open(io.BytesIO(answer.body)).size == (4 * tiny.SIDE, 4 * tiny.SIDE)
    assert int(answer.headers["X-Lanes"]) >= 1


def test_fastapi_says_what_is_wrong(service: Any) -> None:
    async def work(app: FastAPI) -> list[int]:
        make, found = app.routes["/pictures"], []
        for asked in ({"steps": 0}, {"steps": 101}, {"deadline_ms": 1.0}):
            with pytest.raises(HTTPException) as error:
                await make(Http(app), PROMPT, **asked)
            found.append(error.value.status_code)
        return found

    assert served(service, work) == [400, 400, 503]


def broken(patch: pytest.MonkeyPatch) -> None:
    """The decoder fails, in words that are nobody's business."""

    def run(session: OnnxSession, inputs: Any) -> Any:
        if "decoder" in session.path:
            raise dt.ModelError(f"{session.path} failed")
        return known_run(session, inputs)

    known_run = OnnxSession.run
    patch.setattr(OnnxSession, "run", run)


def test_fastapi_takes_the_blame_for_what_fails_later(
    service: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(app: FastAPI) -> Any:
        broken(monkeypatch)
        with pytest.raises(HTTPException) as error:
            await app.routes["/pictures"](Http(app), PROMPT, steps=2)
        return error.value

    error = served(service, work)
    assert error.status_code == 500 and "onnx" not in str(error) and "onnx" in caplog.text


def test_fastapi_leaves_nothing_behind_where_its_task_is_cancelled(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = held(monkeypatch)
    go_on.set()

    async def work(app: FastAPI) -> None:
        go_on.clear()
        engine = app.state.engine
        task = asyncio.ensure_future(app.routes["/pictures"](Http(app), PROMPT, steps=50))
        while not engine.status().running:
            await asyncio.sleep(0.005)
        (ticket,) = engine._scheduler.leases.tickets()
        task.cancel()
        await asyncio.wait([task])
        assert ticket.giving_up.is_set()
        go_on.set()

    served(service, work)


def test_fastapi_refuses_more_than_may_wait(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = held(monkeypatch)
    go_on.set()

    async def work(app: FastAPI) -> None:
        go_on.clear()
        make = app.routes["/pictures"]
        tasks = [asyncio.ensure_future(make(Http(app), PROMPT, steps=2)) for _ in range(50)]
        await asyncio.sleep(0)
        done = [task for task in tasks if task.done()]
        go_on.set()
        await asyncio.wait(tasks)
        refused = [error for task in tasks if (error := task.exception()) is not None]
        assert done and refused and len(refused) < 30
        assert {error.status_code for error in refused} == {429}  # type: ignore[attr-defined]
        assert all(int(error.headers["Retry-After"]) >= 1 for error in refused)  # type: ignore[attr-defined]

    served(service, work)


def test_fastapi_frees_the_lanes_of_a_client_that_leaves(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = held(monkeypatch)
    go_on.set()

    async def work(app: FastAPI) -> Any:
        go_on.clear()
        http = Http(app)
        task = asyncio.ensure_future(app.routes["/pictures"](http, PROMPT, steps=50))
        await asyncio.sleep(0.05)
        http.gone = True
        answer = await task
        assert answer.status_code == 499
        go_on.set()
        while app.state.engine.status().running:
            await asyncio.sleep(0.005)
        return answer

    served(service, work)


# Triton


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> Any:
        return self.values


class TritonError:
    INVALID_ARG, CANCELLED, UNAVAILABLE, INTERNAL = "INVALID_ARG", "CANCELLED", "UNAVAILABLE", "INTERNAL"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


class InferenceResponse:
    def __init__(self, output_tensors: Any = (), error: TritonError | None = None) -> None:
        self.tensors, self.error = output_tensors, error


class Sender:
    """Takes the one response of a request."""

    def __init__(self) -> None:
        self.sent: list[tuple[InferenceResponse, int]] = []
        self.there, self.left = threading.Event(), False

    def send(self, response: InferenceResponse, flags: int) -> None:
        self.sent.append((response, flags))
        self.there.set()

    def is_cancelled(self) -> bool:
        return self.left


class TritonRequest:
    def __init__(self, **inputs: Any) -> None:
        self.inputs = {name: Tensor(name, np.array([value])) for name, value in inputs.items()}
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender


@pytest.fixture
def triton(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fake: Any = ModuleType("triton_python_backend_utils")
    fake.Tensor, fake.InferenceResponse, fake.TritonError = Tensor, InferenceResponse, TritonError
    fake.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    fake.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    path = root / "examples" / "triton" / "pictures" / "1" / "model.py"
    model = loaded(path, monkeypatch, triton_python_backend_utils=fake).TritonPythonModel()
    config = {"parameters": {"model": {"string_value": str(folder)}}}
    model.initialize({"model_config": json.dumps(config)})
    yield model
    model.finalize()
    assert not model._thread.is_alive()


def answered(*requests: TritonRequest) -> list[InferenceResponse]:
    for request in requests:
        assert request.sender.there.wait(20), "no answer"
    time.sleep(0.01)
    assert [[flags for _, flags in request.sender.sent] for request in requests] == [[1]] * len(requests)
    return [request.sender.sent[0][0] for request in requests]


def test_triton_answers_every_request_once(triton: Any) -> None:
    requests = [TritonRequest(PROMPT=b"a red fox", SEED=seed, STEPS=4) for seed in (1, 2, 1)]
    assert triton.execute(requests) is None, "a decoupled model answers later"
    pictures = [response.tensors[0] for response in answered(*requests)]
    assert {(one.name, one.values.dtype.name, one.values.ndim) for one in pictures} == {("IMAGE", "uint8", 3)}
    np.testing.assert_array_equal(pictures[0].values, pictures[2].values)
    assert (pictures[0].values != pictures[1].values).any()


def test_triton_gets_errors_by_their_code(triton: Any) -> None:
    requests = [
        TritonRequest(PROMPT=b"a red fox", STEPS=0),
        TritonRequest(PROMPT=b"a red fox", STEPS=101),
        TritonRequest(PROMPT=b"a" * 1001),
        TritonRequest(PROMPT=b"a red fox", DEADLINE_MS=1.0),
        TritonRequest(STEPS=3),
    ]
    triton.execute(requests)
    errors = [response.error for response in answered(*requests)]
    assert [error and error.code for error in errors] == [
        *3 * ["INVALID_ARG"],
        "UNAVAILABLE",
        "INTERNAL",
    ]


def test_triton_takes_the_blame_for_what_fails_later(
    triton: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken(monkeypatch)
    request = TritonRequest(PROMPT=b"a red fox", STEPS=2)
    triton.execute([request])
    (response,) = answered(request)
    assert response.error is not None and response.error.code == "INTERNAL"
    assert "onnx" not in response.error.message and "onnx" in caplog.text


def test_triton_cancels_what_its_client_gave_up(triton: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, request = held(monkeypatch), TritonRequest(PROMPT=b"a red fox", STEPS=50)
    triton.execute([request])
    request.sender.left = True
    time.sleep(0.2)
    go_on.set()
    (response,) = answered(request)
    assert response.error is not None and response.error.code == "CANCELLED"
