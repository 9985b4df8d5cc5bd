"""AsyncDiff: a network cut into components, and which step each of them sees."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import driffusion_trt as dt
from driffusion_trt.baselines.asyncdiff import AsyncDiffLanes
from driffusion_trt.baselines.split import split_network
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.noise import noise_streams

# Channels of the tracer's output: the step of the latents that component 0 saw, by way of component 1,
# straight from it, and those that component 2 reads itself; and the timesteps that each of them was given.
STEP, TIME_0, TIME_1, TIME_2, SKIP_STEP, SKIP_TIME_0, DIRECT = range(7)
CHANNELS = 8
TRACER = {"sample": (1, CHANNELS, 2, 2), "timestep": (1,), "encoder_hidden_states": (1, 3, 2)}
STEPS = 12


def write_tracer(path: Path) -> Path:
    """A network of three equal components whose output tells what each of them was given."""
    names = itertools.count()
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def weight(value: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(value), f"w{next(names)}"))
        return str(weights[-1].name)

    def node(kind: str, *read: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, read, [f"v{next(names)}"], **attributes))
        return str(nodes[-1].output[0])

    def marked(x: str, channel: int) -> str:
        """With the timestep in one channel: what is added there does not depend on the latents."""
        one_hot = np.zeros((1, CHANNELS, 1, 1), np.float32)
        one_hot[0, channel] = 1
        spread = node("Reshape", "timestep", weight(np.array([-1, 1, 1, 1])))
        return node("Add", x, node("Mul", spread, weight(one_hot)))

    def up(x: str, count: int) -> str:
        return node("Gather", x, weight(np.array([(c - count) % CHANNELS for c in range(CHANNELS)])), axis=1)

    def still(x: str) -> str:
        for _ in range(4):
            x = node("Neg", x)
        return x

    h1 = marked(still("sample"), TIME_0)
    h2 = marked(still(h1), TIME_1)
    marked(node("Add", node("Add", h2, up(h1, SKIP_STEP)), up("sample", DIRECT)), TIME_2)
    nodes[-1].output[0] = "out"
    latents = ["batch", CHANNELS, "height", "width"]
    given = {"sample": latents, "timestep": ["batch"], "encoder_hidden_states": ["batch", 3, 2]}
    graph = helper.make_graph(
        nodes,
        "tracer",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name, sides in given.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, latents)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tracer(tmp_path_factory.mktemp("tracer") / "denoiser.onnx")


def seen(lanes: AsyncDiffLanes, steps: int = STEPS) -> np.ndarray:
    """What the tracer's channels say at every step, (steps, channels); the timestep of step i is 1000 − i."""
    text = np.zeros((1, 3, 2), np.float32)
    predict = lanes.job(text, 1.0).predictions([1000.0 - i for i in range(steps)])
    told = []
    for step in range(steps):
        latents = np.zeros(TRACER["sample"], np.float32)
        latents[:, STEP] = step
        told.append(predict(latents)[0, :, 0, 0])
    return np.array(told)


def lanes_of(network: Path, **options: Any) -> AsyncDiffLanes:
    return AsyncDiffLanes(network, 3, shapes=TRACER, **options)


def test_the_tracer_is_cut_into_its_three_components(network: Path, tmp_path: Path) -> None:
    split = split_network(network, 3, tmp_path, TRACER)
    assert [len(one.crossing) for one in split.components] == [0, 1, 2]  # h1; h2, and h1 again
    assert [one.inputs for one in split.components] == [
        ("sample", "timestep"),
        ("timestep",),
        ("sample", "timestep"),
    ]
    assert split.components[2].outputs == ("out",)
    assert split.components[0].outputs == split.components[1].crossing
    assert split.balance == pytest.approx(1, abs=0.05) == 3 * split.slowest


def test_every_component_sees_what_was_there_a_step_ago(network: Path) -> None:
    """By hand for one step: at step 5 the latents that count are those of step 3, and 4 by the skip."""
    with lanes_of(network) as lanes:
        at_5 = seen(lanes)[5]
    assert at_5[[STEP, SKIP_STEP, DIRECT]].tolist() == [3, 4, 5]
    assert at_5[[TIME_0, TIME_1, TIME_2, SKIP_TIME_0]].tolist() == [997, 996, 995, 996]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("warm_up", [1, 2, 5, STEPS, STEPS + 1])
@pytest.mark.parametrize("time_shift", [False, True])
def test_the_pattern_of_staleness(network: Path, stride: int, warm_up: int, time_shift: bool) -> None:
    with lanes_of(network, stride=stride, warm_up=warm_up, time_shift=time_shift) as lanes:
        assert len(lanes) == 3 + stride - 1
        told = seen(lanes)
    for step, row in enumerate(told):
        if step < warm_up:  # exact
            assert row.tolist() == [step, *[1000 - step] * 3, step, 1000 - step, step, 0]
            continue
        # Component 2 runs in this batch, component 1 ran in the one before, component 0 in that before it.
        batch = (step - warm_up) // stride
        now, one, two = (sees(batch - k, stride, warm_up, time_shift) for k in range(3))
        if batch == 0:  # the last exact step ran all of them
            two = one
        assert row[[STEP, TIME_0]].tolist() == [*two], step
        assert row[[SKIP_STEP, SKIP_TIME_0]].tolist() == [*one], step
        assert row[[TIME_1, TIME_2, DIRECT]].tolist() == [one[1], 1000 - step + time_shift, now[0]], step


def sees(batch: int, stride: int, warm_up: int, time_shift: bool) -> tuple[float, float]:
    """Step of the latents, and timestep, that components before the last are given in a batch."""
    if batch < 0:
        return warm_up - 1, 1000 - (warm_up - 1)
    first = warm_up + batch * stride
    return first, 1000 - (min(first + stride, STEPS) - 1) + time_shift


def test_calls_are_counted_in_units_of_the_network(network: Path) -> None:
    with lanes_of(network, stride=2, warm_up=3) as lanes:
        assert lanes.sequential_calls(50) == pytest.approx(3 + 24 * lanes.split.slowest)
        assert lanes.sequential_calls(50, 0.5) == 3 + 12
        assert lanes.sequential_calls(2) == 2


# The demo's network.


@pytest.fixture(scope="module")
def demo() -> ModelFolder:
    return ModelFolder.open("demo")


def shapes_of(demo: ModelFolder, batch: int = 2) -> dict[str, tuple[int, ...]]:
    return {
        "sample": (batch, *demo.latent_shape),
        "timestep": (batch,),
        "encoder_hidden_states": (batch, 16, 96),
    }


def feeds(demo: ModelFolder, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    made = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes_of(demo, batch).items()}
    return {**made, "timestep": np.full(batch, 481, np.float32)}


@pytest.mark.parametrize("components", [2, 3, 4, 7])
def test_components_in_their_order_are_the_network(
    demo: ModelFolder, tmp_path: Path, components: int
) -> None:
    split = split_network(demo.network("denoiser"), components, tmp_path, shapes_of(demo))
    assert len(split.components) == components and split.balance < 1.2
    assert sum(one.share for one in split.components) == pytest.approx(1, abs=0.02)  # some are done twice
    for batch in (1, 2, 3):
        held = feeds(demo, batch)
        with OnnxSession(demo.network("denoiser")) as whole:
            wanted = whole.run(held)["out_sample"]
        for one in split.components:
            with OnnxSession(one.path) as session:
                assert set(session.inputs) == {*one.inputs, *one.crossing}
                held |= session.run({name: held[name] for name in session.inputs})
        np.testing.assert_allclose(held["out_sample"], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_skip_connections_cross_more_than_one_component(demo: ModelFolder, tmp_path: Path) -> None:
    split = split_network(demo.network("denoiser"), 4, tmp_path, shapes_of(demo))
    first, last = split.components[0], split.components[-1]
    assert set(first.outputs) & set(last.crossing), "the decoder reads what the encoder made"
    later: set[str] = set().union(*(one.crossing for one in split.components))
    made: set[str] = set().union(*(one.outputs for one in split.components))
    assert made - later == {"out_sample"} and later <= made


@pytest.fixture(scope="module")
def embeddings() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    text, empty = (rng.standard_normal((1, 16, 96)).astype(np.float32) for _ in range(2))
    yield text, empty


@pytest.mark.parametrize(("components", "guidance"), [(2, 3.0), (3, 1.0), (4, 3.0)])
def test_the_demo_drifts_and_with_a_warm_up_of_all_steps_does_not(
    demo: ModelFolder, embeddings: tuple[np.ndarray, np.ndarray], components: int, guidance: float
) -> None:
    schedule = dt.Schedule.from_config(demo.scheduler_config(), 10)
    noise, text = noise_streams([5], 1).draw(demo.latent_shape), (embeddings[0], guidance, embeddings[1])
    with HostLanes(demo.network("denoiser"), 1) as host:
        wanted = host.job(*text).sample(dt.make_plan(schedule), noise, noise_streams([5], 1)).latents
    errors, told = [], []
    for warm_up in (1, 5, 10):
        with AsyncDiffLanes(
            demo.network("denoiser"), components, shapes=shapes_of(demo), warm_up=warm_up
        ) as lanes:
            made = lanes.job(*text).sample(schedule, noise, noise_streams([5], 1), told.append)
        assert made.stats.rounds == 10
        errors.append(float(np.linalg.norm(made.latents - wanted) / np.linalg.norm(wanted)))
    assert errors[2] < 1e-6 < errors[1] < errors[0] < 1.5
    assert [one.state for one in told] == [*range(1, 11)] * 3


def test_two_jobs_do_not_see_each_other(demo: ModelFolder, embeddings: tuple[np.ndarray, np.ndarray]) -> None:
    text, empty = embeddings
    with AsyncDiffLanes(demo.network("denoiser"), 2, shapes=shapes_of(demo)) as lanes:
        latents = [noise_streams([k], 1).draw(demo.latent_shape) for k in range(3)]
        one, other, again = (lanes.job(text, 3.0, empty).predictions([900.0, 800.0, 700.0]) for _ in range(3))
        mixed = []
        for x in latents:
            mixed.append(one(x))
            other(x[:, ::-1].copy())
        for x, wanted in zip(latents, mixed, strict=True):
            np.testing.assert_array_equal(again(x), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": 1}, "components must be a whole number, 2 or more, not 1"),
        ({"components": 99}, "99 components were asked of 15 nodes"),
        ({"stride": 0}, "stride must be a whole number, 1 or more, not 0"),
        ({"warm_up": True}, "warm_up must be a whole number"),
        ({"shapes": {"sample": (1, 8, 2, 2)}}, "needs the input 'timestep'"),
    ],
)
def test_what_cannot_be_is_refused(network: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(dt.InputError, match=message):
        AsyncDiffLanes(network, **{"components": 3, "shapes": TRACER, **options})


def test_a_job_refuses_what_does_not_fit(network: Path) -> None:
    text, noise = np.zeros((1, 3, 2), np.float32), np.zeros((1, 8, 2, 2), np.float32)
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    schedule, streams = dt.Schedule.from_config(config, 4), noise_streams([0], 1)
    with lanes_of(network) as lanes:
        with pytest.raises(dt.InputError, match="guidance_scale 3 needs the unconditional"):
            lanes.job(text, 3)
        with pytest.raises(dt.InputError, match="the embeddings have the shapes"):
            lanes.job(text, 3, np.zeros((2, 3, 2), np.float32))
        with pytest.raises(dt.InputError, match="this network is told encoder_hidden_states"):
            lanes.job({"text": text}, 1)
        with pytest.raises(dt.InputError, match="conditioning: encoder_hidden_states is float64"):
            lanes.job(text.astype(np.float64), 1)
        with pytest.raises(dt.InputError, match="a plan of mode 'aggressive' was given"):
            lanes.job(text, 1).sample(dt.make_plan(schedule, mode="aggressive", lanes=2), noise, streams)
        with pytest.raises(dt.InputError, match="noise is float32 of shape"):
            lanes.job(text, 1).sample(schedule, np.concatenate([noise, noise]), streams)
        with pytest.raises(dt.LaneError):
            lanes.job(text, 1).sample(schedule, noise[:, :4], streams)
    lanes.close()
    with pytest.raises(dt.LaneError, match="the lanes are closed"):
        lanes.job(text, 1)


def test_without_onnx_the_extra_is_named(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(dt.MissingExtraError, match=r"pip install '\.\[export\]'"):
        AsyncDiffLanes(network, 3, shapes=TRACER)


def test_what_is_no_denoiser_is_refused(demo: ModelFolder) -> None:
    with pytest.raises(dt.ModelError, match="AsyncDiff runs denoisers"):
        AsyncDiffLanes(demo.network("text_encoder"), 2, shapes={})
