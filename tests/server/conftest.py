"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tiny
from httpd import Service, serving, until

from driffusion_trt import Engine, Pipeline
from driffusion_trt.server.limits import Limits
from driffusion_trt.server.metrics import Metrics


@pytest.fixture(scope="package")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """A small model with an encoder, on two lanes."""
    folder = tiny.make_model_folder(tmp_path_factory.mktemp("served") / "tiny", encoder=True)
    with Pipeline.load(folder, devices=2) as found:
        yield found


@pytest.fixture(scope="module")
def shared_service(pipe: Pipeline) -> Iterator[Service]:
    with serving(pipe) as found:
        yield found


@pytest.fixture(scope="package")
def real() -> Iterator[Service]:
    """The bundled model behind the engine and the bounds that users get, started once."""
    pipe = Pipeline.load("demo", devices=2)
    limits = Limits(body_s=5.0)

    def engine(metrics: Metrics) -> Engine:
        return Engine(pipe, queue=4, observer=metrics)

    with serving(pipe, limits=limits, engine=engine) as found:
        yield found


@pytest.fixture
def service(shared_service: Service) -> Iterator[Service]:
    """One that all tests of a module share; its levers are put back."""
    engine = shared_service.engine
    engine.asked.clear()
    yield shared_service
    engine.gate.set()
    engine.refuse = engine.fail = None
    until(lambda: not engine.under_way)
