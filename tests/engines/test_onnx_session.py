"""Sessions against onnx's own reference evaluator; bound runs; refusals; threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from driffusion_trt import InputError, ModelError
from driffusion_trt.engines.onnx_session import OnnxSession


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_denoiser(tmp_path_factory.mktemp("onnx") / "denoiser.onnx")


def inputs(batch: int = 2, seed: int = 0, side: int = 16) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(seed)
    return {
        "sample": random.standard_normal((batch, 4, side, side)).astype(np.float32),
        "timestep": np.linspace(1, 981, batch, dtype=np.float32),
        "encoder_hidden_states": random.standard_normal((batch, 16, 96)).astype(np.float32),
    }


def shapes(given: dict[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in given.items()}


def test_run_equals_the_reference(path: Path) -> None:
    given = inputs()
    reference: Any = ReferenceEvaluator(onnx.load(path)).run(None, given)
    with OnnxSession(path) as session:
        got = session.run(given)
    assert list(got) == ["out_sample"]
    np.testing.assert_allclose(got["out_sample"], reference[0], rtol=1e-4, atol=1e-5)


def test_what_a_session_knows_of_its_network(path: Path) -> None:
    with OnnxSession(path) as session:
        assert session.inputs["sample"].shape == ("batch", 4, "height", "width")
        assert session.inputs["timestep"].dtype == np.float32
        assert session.check(shapes(inputs(3, side=8))) == {"batch": 3, "height": 8, "width": 8}


def test_a_bound_run_reads_and_writes_its_buffers_in_place(path: Path) -> None:
    with OnnxSession(path) as session:
        run = session.bind(shapes(inputs()))
        out = run.outputs["out_sample"]
        for seed in (1, 2):
            given = inputs(seed=seed)
            for name, value in given.items():
                run.inputs[name][...] = value
            run()
            assert run.outputs["out_sample"] is out
            np.testing.assert_array_equal(out, session.run(given)["out_sample"])


def test_a_given_array_is_read_in_place_by_several_runs(path: Path) -> None:
    given = inputs()
    shared = given["encoder_hidden_states"]
    with OnnxSession(path) as session:
        runs = [session.bind({**shapes(given), "encoder_hidden_states": shared}) for _ in range(2)]
        shared += 1
        wanted = session.run(given)["out_sample"]
        for run in runs:
            assert run.inputs["encoder_hidden_states"] is shared
            run.inputs["sample"][...] = given["sample"]
            run.inputs["timestep"][...] = given["timestep"]
            run()
            np.testing.assert_array_equal(run.outputs["out_sample"], wanted)


def test_outputs_with_sides_of_their_own_are_bound_too(tmp_path: Path) -> None:
    with OnnxSession(tiny.make_vae_decoder(tmp_path / "vae.onnx")) as session:
        run = session.bind({"latents": (2, 4, 16, 16)})
        run.inputs["latents"][...] = inputs()["sample"]
        run()
        assert run.outputs["pictures"].shape == (2, 3, 64, 64)
        np.testing.assert_array_equal(
            run.outputs["pictures"], session.run({"latents": inputs()["sample"]})["pictures"]
        )


def test_one_session_serves_several_threads_at_once(path: Path) -> None:
    with OnnxSession(path) as session:
        wanted = [session.run(inputs(seed=seed))["out_sample"] for seed in range(4)]
        wrong: list[int] = []

        def work(seed: int) -> None:
            run = session.bind(shapes(inputs()))
            for name, value in inputs(seed=seed).items():
                run.inputs[name][...] = value
            for _ in range(50):
                run.outputs["out_sample"].fill(np.nan)
                run()
                if not np.array_equal(run.outputs["out_sample"], wanted[seed]):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_result(path: Path, threads: int) -> None:
    with OnnxSession(path) as one, OnnxSession(path, threads) as other:
        np.testing.assert_allclose(
            other.run(inputs())["out_sample"], one.run(inputs())["out_sample"], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampel": np.zeros(1)}, "no input 'sampel'; did you mean 'sample'"),
        ({"timestep": None}, r"needs the input 'timestep' of shape \(batch\)"),
        (
            {"sample": np.zeros((2, 3, 16, 16), np.float32)},
            r"'sample'.*\(2, 3, 16, 16\), expected \(batch, 4,",
        ),
        ({"timestep": np.zeros((2, 1), np.float32)}, r"'timestep'.*\(2, 1\), expected \(batch\)"),
        ({"timestep": np.zeros(3, np.float32)}, r"'timestep'.*\(3\), expected \(batch\) with batch 2"),
    ],
)
def test_wrong_inputs_are_refused(path: Path, change: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in {**inputs(), **change}.items() if value is not None}
    with OnnxSession(path) as session:
        with pytest.raises(InputError, match=message):
            session.run(given)
        with pytest.raises(InputError, match=message):
            session.bind(shapes(given))


def test_a_wrong_dtype_is_refused(path: Path) -> None:
    with OnnxSession(path) as session:
        given = {**inputs(), "timestep": np.zeros(2)}
        with pytest.raises(InputError, match=r"'timestep'.*is float64, expected float32"):
            session.run(given)
        with pytest.raises(InputError, match=r"'timestep'.*is float64, expected float32"):
            session.bind({**shapes(given), "timestep": given["timestep"]})
        with pytest.raises(InputError, match="C-contiguous"):
            session.bind({**shapes(given), "timestep": np.zeros(4, np.float32)[::2]})


def test_a_network_that_fails_says_so(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = {**inputs(), "timestep": np.full(2, 1000, np.float32)}
    with OnnxSession(path) as session:
        with pytest.raises(
            ModelError, match=r"failed while it ran.*indices element out of data bounds"
        ) as caught:
            session.run(given)
        assert caught.value.__cause__ is not None
        run = session.bind(given)
        with pytest.raises(ModelError, match=r"failed while it ran.*out of data bounds"):
            run()
    assert capfd.readouterr() == ("", "")


def test_files_that_cannot_be_loaded(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=r"missing\.onnx does not exist.*build it again"):
        OnnxSession(tmp_path / "missing.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"broken\.onnx cannot be loaded") as caught:
        OnnxSession(tmp_path / "broken.onnx")
    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


def test_threads_must_be_positive(path: Path) -> None:
    with pytest.raises(InputError, match="threads must be at least 1, not 0"):
        OnnxSession(path, 0)


def test_closing_twice_is_fine_and_use_after_it_is_not(path: Path) -> None:
    session = OnnxSession(path)
    run = session.bind(shapes(inputs()))
    session.close()
    session.close()
    with pytest.raises(InputError, match="is closed"):
        session.run(inputs())
    with pytest.raises(InputError, match="is closed"):
        run()
