"""Sessions of TensorRT: names, shapes, buffers and refusals, over a stand-in for its runtime.

What this cannot show is what a GPU does: tests/gpu does that where there is one.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
import tiny
from numpy.typing import NDArray

from driffusion_trt import DeviceError, EngineError, InputError, MissingExtraError
from driffusion_trt.engines.flavours import FLAVOURS
from driffusion_trt.engines.onnx_session import OnnxSession
from driffusion_trt.engines.session import Bound, DeviceBuffer, Session
from driffusion_trt.engines.trt_session import TensorRTSession

RTX, PLAIN = FLAVOURS["tensorrt-rtx"], FLAVOURS["tensorrt"]
PROFILE = {
    "sample": [[1, 4, 16, 16], [2, 4, 16, 16], [4, 4, 16, 16]],
    "timestep": [[1], [2], [4]],
    "encoder_hidden_states": [[1, 16, 96], [2, 16, 96], [4, 16, 96]],
}


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", standin)
    monkeypatch.setitem(sys.modules, "tensorrt", standin)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.make_denoiser(tmp_path_factory.mktemp("onnx") / "denoiser.onnx"))


def arrays(batch: int = 2, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return {
        "sample": random.standard_normal((batch, 4, 16, 16)).astype(np.float32),
        "timestep": np.linspace(1, 981, batch, dtype=np.float32),
        "encoder_hidden_states": random.standard_normal((batch, 16, 96)).astype(np.float32),
    }


def buffer(array: NDArray[Any]) -> DeviceBuffer:
    return DeviceBuffer(array.ctypes.data, array.shape, array.dtype)


def buffers(given: dict[str, NDArray[Any]]) -> dict[str, DeviceBuffer]:
    return {name: buffer(value) for name, value in given.items()}


def load(onnx_file: str, flavour: Any = RTX, *, jit_cache: Path | None = None, **odd: Any) -> TensorRTSession:
    data = standin.plan(onnx_file, PROFILE, **odd)
    return TensorRTSession(data, flavour, name="denoiser", jit_cache=jit_cache)


@pytest.mark.parametrize("flavour", [RTX, PLAIN], ids=lambda flavour: flavour.name)
def test_a_bound_engine_computes_what_onnx_runtime_does(onnx_file: str, flavour: Any) -> None:
    given, out = arrays(), np.zeros((2, 4, 16, 16), np.float32)
    with load(onnx_file, flavour) as session, OnnxSession(onnx_file) as reference:
        bound = session.bind(buffers(given), {"out_sample": buffer(out)})
        for seed in (1, 2):
            for name, value in arrays(seed=seed).items():
                given[name][...] = value
            bound.enqueue(7)
            np.testing.assert_array_equal(out, reference.run(given)["out_sample"])
        assert bound._context.streams == [7, 7]  # type: ignore[attr-defined]


def test_both_runtimes_have_the_one_form(onnx_file: str) -> None:
    """mypy sees that they fit the protocols; this, that they say the same of one network."""
    given, out = arrays(), np.zeros((2, 4, 16, 16), np.float32)
    trt: Session[DeviceBuffer] = load(onnx_file)
    ort: Session[NDArray[Any]] = OnnxSession(onnx_file)
    assert {n: i.dtype for n, i in trt.inputs.items()} == {n: i.dtype for n, i in ort.inputs.items()}
    assert set(trt.outputs) == set(ort.outputs)
    bound: Bound = trt.bind(buffers(given), {"out_sample": buffer(out)})
    bound.enqueue()
    again = np.zeros_like(out)
    bound = ort.bind(given, {"out_sample": again})
    bound.enqueue()
    np.testing.assert_array_equal(out, again)
    trt.close()
    ort.close()


def test_what_a_session_knows_of_its_plan(onnx_file: str) -> None:
    with load(onnx_file) as session:
        assert session.inputs["sample"].shape == (None, 4, None, None)
        assert session.inputs["encoder_hidden_states"].shape == (None, 16, 96)
        assert session.outputs["out_sample"].dtype == np.float32


def test_every_binding_has_a_context_of_its_own(onnx_file: str) -> None:
    with load(onnx_file) as session:
        small = session.bind(
            buffers(one := arrays(1)), {"out_sample": buffer(out := np.zeros_like(one["sample"]))}
        )
        session.bind(buffers(arrays(4)), {"out_sample": buffer(np.zeros((4, 4, 16, 16), np.float32))})
        small.enqueue()  # the other binding has not changed its shapes
        assert out.any()


def test_bindings_may_share_what_lies_between_their_layers(onnx_file: str) -> None:
    memory, asked = np.zeros(1 << 16, np.uint8), []

    def scratch(size_bytes: int) -> int:
        asked.append(size_bytes)
        return -(-memory.ctypes.data // 256) * 256

    out = [np.zeros((batch, 4, 16, 16), np.float32) for batch in (1, 2)]
    with load(onnx_file) as session, OnnxSession(onnx_file) as reference:
        given = [arrays(len(one)) for one in out]
        bound = [
            session.bind(buffers(one), {"out_sample": buffer(to)}, scratch)
            for one, to in zip(given, out, strict=True)
        ]
        for one in bound:
            one.enqueue()
        for one, made in zip(given, out, strict=True):
            np.testing.assert_array_equal(made, reference.run(one)["out_sample"])
    assert len(asked) == 2 and 0 < asked[0] < asked[1]
    assert memory.any()


def test_a_context_that_is_handed_on_is_the_next_bindings(onnx_file: str) -> None:
    """Also for other shapes; and one that only tells shapes is not thrown away."""
    memory = np.zeros(1 << 16, np.uint8)
    address = -(-memory.ctypes.data // 256) * 256
    with load(onnx_file) as session:
        for batch in (2, 3, 2):
            given = arrays(batch)
            shapes = session.output_shapes({name: value.shape for name, value in given.items()})
            out = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
            bound = session.bind(buffers(given), buffers(out), lambda size_bytes: address)
            bound.enqueue()
            with OnnxSession(onnx_file) as right:
                np.testing.assert_array_equal(list(out.values()), list(right.run(given).values()))
            bound.hand_on()
            del bound
        assert len(session._open().configs) == 1


def test_memory_that_cannot_be_had_is_the_error_of_who_gives_it(onnx_file: str) -> None:
    def scratch(size_bytes: int) -> int:
        raise DeviceError("no memory", "CUDA_ERROR_OUT_OF_MEMORY")

    with load(onnx_file) as session, pytest.raises(DeviceError, match="no memory"):
        session.bind(buffers(arrays()), {"out_sample": buffer(np.zeros((2, 4, 16, 16), np.float32))}, scratch)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"smaple": (2, 4, 16, 16)}, "no input 'smaple'; did you mean 'sample'"),
        ({"timestep": None}, "needs the input 'timestep'"),
        (
            {"sample": (8, 4, 16, 16)},
            r"shape \(8, 4, 16, 16\), and its plan was built for \(1, 4, 16, 16\) to",
        ),
        ({"sample": (2, 4, 24, 16)}, r"driffusion-trt build"),
        ({"sample": (2, 4, 16)}, r"shape \(2, 4, 16\)"),
    ],
)
def test_inputs_outside_of_the_profile_are_refused(
    onnx_file: str, change: dict[str, Any], words: str
) -> None:
    shapes = {name: value.shape for name, value in arrays().items()} | change
    with load(onnx_file) as session:
        session.check({name: value.shape for name, value in arrays().items()})
        with pytest.raises(InputError, match=words):
            session.check({name: shape for name, shape in shapes.items() if shape is not None})


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({}, "needs the output 'out_sample'"),
        (
            {"out": np.zeros((2, 4, 16, 16), np.float32)},
            "no output 'out'; did you mean|no output 'out'; known",
        ),
        (
            {"out_sample": np.zeros((2, 4, 16, 16), np.float16)},
            "'out_sample' of denoiser is float32, .* float16",
        ),
        ({"out_sample": np.zeros((1, 4, 16, 16), np.float32)}, r"has shape \(2, 4, 16, 16\), not \(1, 4"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(
    onnx_file: str, outputs: dict[str, NDArray[Any]], words: str
) -> None:
    with load(onnx_file) as session, pytest.raises(InputError, match=words):
        session.bind(buffers(arrays()), buffers(outputs))


def test_failures_carry_tensorrts_words(onnx_file: str) -> None:
    with pytest.raises(
        EngineError, match=r"loading the plan of denoiser.*does not conform to expected format"
    ):
        TensorRTSession(b"nothing of the kind", RTX, name="denoiser")
    given, out = buffers(arrays()), {"out_sample": buffer(np.zeros((2, 4, 16, 16), np.float32))}
    with load(onnx_file, context=1) as session, pytest.raises(EngineError, match=r"context.*Out of memory"):
        session.bind(given, out)
    with load(onnx_file, run=1) as session, pytest.raises(EngineError, match="illegal memory access"):
        session.bind(given, out).enqueue()


def test_a_dtype_that_callers_cannot_fill_is_refused(onnx_file: str) -> None:
    with pytest.raises(EngineError, match="'sample' is BF16"):
        load(onnx_file, sample="BF16")


def test_a_closed_session_says_so(onnx_file: str) -> None:
    session = load(onnx_file)
    session.close()
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.bind(buffers(arrays()), {})


def test_a_missing_flavour_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install '.[tensorrt]'")):
        TensorRTSession(b"", PLAIN, name="denoiser")


def test_finished_kernels_are_kept_for_the_next_time(onnx_file: str, tmp_path: Path) -> None:
    cache = tmp_path / "kernels"
    with load(onnx_file, jit_cache=cache) as session:
        session.save_kernels()
    assert cache.read_bytes() == b"kernels" and [path.name for path in tmp_path.iterdir()] == ["kernels"]
    cache.write_bytes(b"kernels of yesterday")
    with load(onnx_file, jit_cache=cache) as session:
        config = session._config
        assert config is not None and config.cache.kernels == b"kernels of yesterday"  # type: ignore[attr-defined]
        assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    with load(onnx_file, jit_cache=cache / "under a file" / "kernels") as session:
        session.save_kernels()  # a folder that cannot be made only costs the gain


def test_kernels_are_written_where_there_are_others_than_are_kept(onnx_file: str, tmp_path: Path) -> None:
    cache = tmp_path / "kernels"
    with load(onnx_file, jit_cache=cache) as session:
        session.save_kernels()
        cache.unlink()
        session.save_kernels()
        assert not cache.exists(), "they are those that were kept"
        kernels: Any = session._kernels
        kernels.kernels = b"kernels and more"
        session.save_kernels()
        assert cache.read_bytes() == b"kernels and more"
    with load(onnx_file, jit_cache=cache) as session:
        cache.unlink()
        session.save_kernels()
        assert not cache.exists(), "read, and nothing new"
        kernels = session._kernels
        kernels.serialize = lambda: None
        session.save_kernels()


# The stand-in is like the real thing


def _own(kind: type) -> list[str]:
    return [
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property))
    ]


@pytest.mark.parametrize(
    "name",
    ["Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache", "ILogger"],
)
def test_the_stand_in_has_the_real_names_and_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    real = pytest.importorskip("tensorrt_rtx")
    assert real is not standin
    for member in _own(getattr(standin, name)):
        there = getattr(getattr(real, name), member)
        if isinstance(vars(getattr(standin, name))[member], property):
            continue
        ours = list(inspect.signature(getattr(getattr(standin, name), member)).parameters)[1:]
        signatures = re.findall(rf"{member}\((.*?)\) ->", there.__doc__)
        theirs = [re.findall(r"(\w+): ", re.sub(r"\[.*?\]|<.*?>", "", text))[1:] for text in signatures]
        assert ours in theirs, (member, ours, theirs)


@pytest.mark.parametrize(
    "name",
    [
        "TensorIOMode",
        "CudaGraphStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "ExecutionContextAllocationStrategy",
        "DataType",
    ],
)
def test_the_stand_in_has_the_real_enumerations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    real = getattr(pytest.importorskip("tensorrt_rtx"), name)
    assert {member.name for member in getattr(standin, name)} <= set(real.__members__)
