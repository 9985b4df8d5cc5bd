"""Lanes that are lost: how they are counted, and the end of a process that has none."""

from __future__ import annotations

import socket
import threading
from types import SimpleNamespace
from typing import Any

import httpd
import pytest
from httpd import DEADLINE_S, open_request, read_until, until

from driffusion_trt import NoDeviceError, Pipeline
from driffusion_trt._errors import CancelledError, DeadlineError, LaneError
from driffusion_trt.server.app import Options, make_app
from driffusion_trt.server.limits import Limits
from driffusion_trt.server.metrics import Metrics
from driffusion_trt.server.serving import bound, serve
from driffusion_trt.server.store import Store


class Serving(threading.Thread):
    """`serve`, in a thread, over an engine with levers; `error` is what it raised in the end."""

    def __init__(self, pipe: Pipeline) -> None:
        super().__init__(daemon=True)
        metrics, limits = Metrics(), Limits()
        self.engine = httpd.Engine(pipe, metrics)
        self.app = make_app(self.engine, Options(("tiny",)), Store(limits.stored_bytes, 60.0, None), metrics)
        self.listener = bound("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            serve(self.app, self.listener, Limits(), None)
        except BaseException as error:
            self.error = error

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)


@pytest.fixture
def service(pipe: Pipeline) -> Any:
    found = Serving(pipe)
    yield found
    found.engine.gate.set()
    found.engine.lanes = 0
    found.engine.hanging = 0
    found.join(DEADLINE_S)
    found.listener.close()


def listens(service: Serving) -> bool:
    try:
        service.connect().close()
    except ConnectionRefusedError:
        return False
    return True


def test_without_a_device_what_was_accepted_is_answered_and_the_process_fails(service: Any) -> None:
    """So that whatever watches over the process starts it anew."""
    until(lambda: listens(service))
    service.engine.gate.clear()
    with open_request(service) as client:
        until(lambda: service.engine.under_way)
        service.engine.lanes = 0
        until(lambda: service.engine.draining)
        assert service.is_alive()
        service.engine.gate.set()
        assert read_until(client, b" 200 OK\r\n")
    service.join(DEADLINE_S)
    assert isinstance(service.error, NoDeviceError) and "every device has failed" in str(service.error)


def test_what_hangs_may_come_back(service: Any) -> None:
    until(lambda: listens(service))
    service.engine.hanging, service.engine.lanes = 1, 0
    looks = threading.Event()
    looks.wait(2.5)  # it looks once a second
    assert not service.engine.draining and service.is_alive()


def counted(metrics: Metrics, name: str) -> float:
    lines = metrics.text().decode().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def test_lanes_are_counted_each() -> None:
    metrics = Metrics()
    metrics.on_lanes_lost(3, 1)
    metrics.on_lanes_lost(1, 0)
    assert counted(metrics, "driffusion_lanes_lost_total") == 4


def test_deadlines_that_were_not_kept_are_counted() -> None:
    """By whatever it was, but for clients that left."""
    metrics, late = Metrics(), SimpleNamespace(deadline_kept=False)
    for error in (DeadlineError("late", 1.0), LaneError("failed"), CancelledError("left")):
        metrics.on_failed(late, error)
    metrics.on_failed(SimpleNamespace(deadline_kept=None), LaneError("failed"))
    assert counted(metrics, 'driffusion_deadline_total{kept="no"}') == 2
    assert counted(metrics, 'driffusion_deadline_total{kept="yes"}') == 0
