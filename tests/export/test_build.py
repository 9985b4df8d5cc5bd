"""Model folders in the making: what is done twice, what is not, and what a stopped export leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from driffusion_trt import InputError, MissingExtraError, ModelError
from driffusion_trt.cli import main
from driffusion_trt.engines.manifest import ModelFolder
from driffusion_trt.export import build, plan
from driffusion_trt.export.build import export_model, run_export
from driffusion_trt.export.plan import plan_export

Checkpoints = Callable[[str], Path]
SD21 = ["text_encoder", "denoiser", "vae_decoder", "vae_encoder", "tokenizer"]


class Stop(BaseException):
    """A kill, as far as this process can play one: no handler of ours may catch it."""


class Pretended:
    """The process boundary: files with the right names at once, in place of networks after a minute.

    The files say which orders made them. `stop_after` reports it dies, as a killed build does.
    """

    def __init__(self) -> None:
        self.made: list[str] = []
        self.checked: list[str] = []
        self.stop_after = 10**9

    def __call__(self, work: str, orders: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for name in orders["names"]:
            self._tick()
            yield {"name": name}
            self._tick()
            if work == "verify":
                self.checked.append(name)
                yield {"name": name, "parity": 1e-7}
                continue
            self.made.append(name)
            files = self._write(Path(orders["output"]), name, json.dumps(orders, sort_keys=True))
            self._tick()
            yield {"name": name, "files": [str(file) for file in files]}

    def _write(self, output: Path, name: str, text: str) -> list[Path]:
        names = [f"onnx/{name}.onnx", f"onnx/{name}.onnx.data"]
        files = [output / n for n in (names if "token" not in name else [f"{name}/tokenizer.json"])]
        for file in files:
            self._tick()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return files

    def _tick(self) -> None:
        self.stop_after -= 1
        if self.stop_after < 0:
            raise Stop


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    fake = Pretended()
    monkeypatch.setattr(build, "_child", fake)
    return fake


def test_a_second_export_does_nothing(checkpoints: Checkpoints, pretended: Pretended, tmp_path: Path) -> None:
    export_model("sd21", checkpoints("sd21"), tmp_path / "m")
    assert pretended.made == SD21
    assert pretended.checked == SD21[:-1]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*")}
    told: list[tuple[float, str]] = []
    export_model("sd21", checkpoints("sd21"), tmp_path / "m", progress=lambda *what: told.append(what))
    assert pretended.made == SD21
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*")} == before
    assert told == [(1.0, "done")]


def test_progress_runs_from_none_to_all(
    checkpoints: Checkpoints, pretended: Pretended, tmp_path: Path
) -> None:
    told: list[tuple[float, str]] = []
    export_model("sd21", checkpoints("sd21"), tmp_path / "m", progress=lambda *what: told.append(what))
    shares = [share for share, _ in told]
    assert shares == sorted(shares) and shares[0] == 0.0 and shares[-1] == 1.0
    assert [text for _, text in told][:2] == ["exporting text_encoder", "exporting denoiser"]
    assert "comparing vae_decoder with torch" in [text for _, text in told]


def touch(path: Path) -> None:
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize(
    ("change", "made"),
    [
        (lambda source, model: touch(source / "vae" / "config.json"), ["vae_decoder", "vae_encoder"]),
        (lambda source, model: touch(source / "tokenizer" / "vocab.json"), ["tokenizer"]),
        (lambda source, model: touch(source / "text_encoder" / "model.safetensors"), ["text_encoder"]),
        (lambda source, model: (model / "onnx" / "denoiser.onnx.data").unlink(), ["denoiser"]),
        (lambda source, model: (model / "onnx" / "denoiser.onnx").write_text("x"), ["denoiser"]),
        (lambda source, model: touch(model / "manifest.json"), []),
        (lambda source, model: (model / "manifest.json").unlink(), []),
        (lambda source, model: touch(source / "scheduler" / "scheduler_config.json"), []),
        (lambda source, model: (model / ".export.json").write_text("{"), SD21),
    ],
)
def test_only_what_changed_is_made_anew(
    copy_of: Checkpoints,
    pretended: Pretended,
    tmp_path: Path,
    change: Callable[[Path, Path], None],
    made: list[str],
) -> None:
    source, model = copy_of("sd21"), tmp_path / "m"
    export_model("sd21", source, model)
    change(source, model)
    pretended.made.clear()
    pretended.checked.clear()
    export = plan_export("sd21", source, model)
    assert not export.finished
    run_export(export)
    assert pretended.made == made
    assert pretended.checked == [name for name in made if name != "tokenizer"]
    ModelFolder.open(model, verify=True)
    assert plan_export("sd21", source, model).finished


@pytest.mark.parametrize("package", ["torch", "diffusers", "transformers", "onnx", "onnxscript"])
def test_other_versions_make_other_networks(
    checkpoints: Checkpoints,
    pretended: Pretended,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    export_model("sd21", checkpoints("sd21"), tmp_path / "m")
    version = plan.metadata.version
    monkeypatch.setattr(plan.metadata, "version", lambda name: "99" if name == package else version(name))
    assert len(plan_export("sd21", checkpoints("sd21"), tmp_path / "m").make) == len(SD21)


def test_precision_and_checks(checkpoints: Checkpoints, pretended: Pretended, tmp_path: Path) -> None:
    export_model("sdxl", checkpoints("sdxl"), tmp_path / "m", verify=False)
    manifest = ModelFolder.open(tmp_path / "m").manifest
    assert (manifest.precision, pretended.checked) == ("fp16", [])
    networks = ["text_encoder", "text_encoder_2", "denoiser", "vae_decoder", "vae_encoder"]
    assert manifest.parity == dict.fromkeys(networks), "it says that they were not compared"
    # Comparing what is there needs no second export, and says so in a new manifest.
    pretended.made.clear()
    export_model("sdxl", checkpoints("sdxl"), tmp_path / "m")
    assert pretended.made == []
    assert set(ModelFolder.open(tmp_path / "m").manifest.parity.values()) == {1e-7}
    # SDXL's autoencoder is in float32 beside fp16 too.
    export = plan_export("sdxl", checkpoints("sdxl"), tmp_path / "m", precision="fp32")
    assert export.make == ("text_encoder", "text_encoder_2", "denoiser")


def test_another_family_leaves_no_strangers(
    checkpoints: Checkpoints, pretended: Pretended, tmp_path: Path
) -> None:
    model = tmp_path / "m"
    export_model("sd3", checkpoints("sd3"), model)
    (model / "plans" / "gpu").mkdir(parents=True)
    (model / "plans" / "gpu" / "denoiser.plan").write_text("plan")
    export_model("sd3", checkpoints("sd3"), model, skip=["text_encoder_3"])
    assert "text_encoder_3" not in ModelFolder.open(model, verify=True).networks
    assert not (model / "tokenizer_3").exists()
    export_model("sd21", checkpoints("sd21"), model)
    opened = ModelFolder.open(model, verify=True)
    assert opened.networks == ("denoiser", "text_encoder", "vae_decoder", "vae_encoder")
    assert (model / "plans" / "gpu" / "denoiser.plan").exists()  # whose key says what it is of


# Before and after every report and every file: 4 networks of 5 moments, a tokenizer of 4, 4 checks of 2.
MOMENTS = 4 * 5 + 4 + 4 * 2


def test_what_was_damaged_is_made_again(
    checkpoints: Checkpoints, pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that cannot be read, and a network that was altered and kept its size and time."""
    words = ["build", "--model", "sd21", "--checkpoint", str(checkpoints("sd21"))]
    words += ["-o", str(tmp_path / "m"), "--target", "cpu"]
    assert main(words) == 0
    (tmp_path / "m" / "manifest.json").write_text("{")
    pretended.made.clear()
    assert main(words) == 0
    assert pretended.made == [], "the networks are whole"

    onnx = tmp_path / "m" / "onnx" / "denoiser.onnx"
    times = onnx.stat()
    whole = onnx.read_bytes()
    onnx.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    os.utime(onnx, ns=(times.st_atime_ns, times.st_mtime_ns))
    plans: list[str] = []

    def build_plans(store: Any, requests: Any, **_: Any) -> list[Any]:
        plans.extend(request.key.network for request in requests)
        return []

    monkeypatch.setattr("driffusion_trt.commands._building.build_plans", build_plans)
    pytest.importorskip("tensorrt_rtx")
    assert main([*words[:-1], "sm89", "--precision", "fp32"]) == 0
    assert pretended.made == ["denoiser"] and "denoiser" in plans
    assert onnx.read_bytes()[:1] == whole[:1]


@pytest.mark.parametrize("at", range(MOMENTS + 1))
def test_a_stop_at_any_moment(
    checkpoints: Checkpoints, pretended: Pretended, tmp_path: Path, at: int
) -> None:
    """Nobody takes the folder for a model, and the next export makes what is missing only."""
    model = tmp_path / "m"
    pretended.stop_after = at
    stopped = False
    try:
        export_model("sd21", checkpoints("sd21"), model)
    except Stop:
        stopped = True
        with pytest.raises(ModelError, match="not a model folder"):
            ModelFolder.open(model)
    assert stopped == (at < MOMENTS)
    done = set(json.loads((model / ".export.json").read_text())["entries"])
    pretended.made.clear()
    pretended.stop_after = 10**9
    export_model("sd21", checkpoints("sd21"), model)
    assert not done & set(pretended.made)
    ModelFolder.open(model, verify=True)


def test_a_stop_while_a_finished_folder_is_renewed(
    copy_of: Checkpoints, pretended: Pretended, tmp_path: Path
) -> None:
    source, model = copy_of("sd21"), tmp_path / "m"
    export_model("sd21", source, model)
    touch(source / "unet" / "config.json")
    pretended.stop_after = 4  # one of the denoiser's files is new, the other old
    with pytest.raises(Stop):
        export_model("sd21", source, model)
    with pytest.raises(ModelError, match="not a model folder"):
        ModelFolder.open(model)
    pretended.stop_after = 10**9
    export_model("sd21", source, model)
    ModelFolder.open(model, verify=True)


def test_what_is_somebody_elses_is_left_alone(
    checkpoints: Checkpoints, pretended: Pretended, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    app = tmp_path / "web app"
    app.mkdir()
    (app / "manifest.json").write_text('{"name": "an app", "icons": []}')
    for output in (mine, mine / "thesis.txt", app):
        with pytest.raises(InputError, match="exists and is not a model folder"):
            export_model("sd21", checkpoints("sd21"), output)
    assert (mine / "thesis.txt").read_text() == "mine" and len(list(app.iterdir())) == 1
    (tmp_path / "empty" / "plans").mkdir(parents=True)
    export_model("sd21", checkpoints("sd21"), tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "unknown precision 'int8'; known: bf16, fp16, fp32"),
        ({"precision": "fp61"}, "unknown precision 'fp61'; did you mean 'fp16'"),
        ({"skip": ["unet"]}, "'unet' cannot be skipped: sd21 can do without nothing"),
        ({"family": "sd12"}, "unknown model family 'sd12'; did you mean 'sd21'"),
    ],
)
def test_wrong_options(checkpoints: Checkpoints, tmp_path: Path, options: Any, message: str) -> None:
    given = {"family": "sd21", "checkpoint": checkpoints("sd21"), "output": tmp_path / "m", **options}
    with pytest.raises(InputError, match=message):
        export_model(**given)
    assert not (tmp_path / "m").exists()


def test_a_missing_package_is_named(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = plan.metadata.version

    def without(name: str) -> str:
        if name == "diffusers":
            raise plan.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(plan.metadata, "version", without)
    with pytest.raises(MissingExtraError, match=r"diffusers .* pip install '\.\[export\]'"):
        export_model("sd21", checkpoints("sd21"), tmp_path / "m")


# With real processes


@pytest.mark.slow  # a whole export: a minute
def test_a_network_that_computes_something_else_is_not_finished(
    copy_of: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The export, killed for real after its first network, goes on; the comparison finds what is wrong."""
    source, model = copy_of("sd21"), tmp_path / "m"
    code = (
        "import os, signal\nfrom driffusion_trt.export.build import export_model\n"
        "def tell(share, text):\n    if share > 0:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"export_model('sd21', {str(source)!r}, {str(model)!r}, precision='fp32', progress=tell)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=240)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ModelError, match="not a model folder"):
        ModelFolder.open(model)
    assert "text_encoder" in json.loads((model / ".export.json").read_text())["entries"]
    # The weights change after they were exported, without their size and time saying so.
    path = source / "text_encoder" / "model.safetensors"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "fc1.weight" in name)
    tensors[name] = 1.01 * tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    os.utime(path, ns=times)
    with pytest.raises(
        ModelError, match=r"text_encoder in fp32 differs from torch by .* and .*limit of 1e-05"
    ):
        export_model("sd21", source, model, precision="fp32")
    with pytest.raises(ModelError, match="not a model folder"):
        ModelFolder.open(model)
    os.utime(path)  # now it does say so
    export_model("sd21", source, model, precision="fp32")
    assert set(ModelFolder.open(model, verify=True).manifest.parity) == set(SD21[:-1])
    begin = time.perf_counter()
    code = code.replace("os.kill(os.getpid(), signal.SIGKILL)", "pass")
    subprocess.run(
        [sys.executable, "-c", code + "\nimport sys\nassert 'torch' not in sys.modules"], check=True
    )
    assert time.perf_counter() - begin < 20  # two seconds on a machine that does nothing else
