"""What each metric needs, and what is said where it cannot be had."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import scorers
import torch

from driffusion_trt import InputError
from driffusion_trt.evaluation import metrics
from driffusion_trt.evaluation.captions import held_out, prompts_of_file
from driffusion_trt.evaluation.heldout import draw_real
from driffusion_trt.evaluation.metrics import Places, prepared

PROMPTS = prompts_of_file("prompts.txt", ["a cat", "a dog"])


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "pt_inception-2015-12-05-6726825d.pth"
    scorers.save_inception(path)
    return str(path)


def test_fid_is_from_a_folder_of_pictures_or_from_statistics(tmp_path: Path, inception: str) -> None:
    folder = tmp_path / "val2017"
    (folder / "more").mkdir(parents=True)
    one, other = scorers.pictures(2, 30, 40)
    one.save(folder / "000000000139.jpg")
    with pytest.raises(InputError, match="val2017 has 1 pictures; a distance needs two"):
        prepared(["fid"], PROMPTS, Places(str(folder), inception, device="cpu"))
    other.save(folder / "more" / "000000000285.PNG")
    (folder / "readme.txt").write_text("no picture")
    (metric,) = prepared(["fid"], PROMPTS, Places(str(folder), inception, device="cpu"))
    assert metric.reference is not None
    assert [path.name for path in metric.reference.files] == ["000000000139.jpg", "000000000285.PNG"]
    assert metric.load()([one], [""], 0).shape == (1, 2048)
    scorers.save_statistics(tmp_path / "real.npz")
    (metric,) = prepared(["fid"], PROMPTS, Places(str(tmp_path / "real.npz"), inception, device="cpu"))
    assert metric.reference is not None and metric.reference.known is not None
    assert np.array_equal(metric.reference.known().covariance, np.eye(2048))


def test_all_that_is_missing_is_said_at_once(tmp_path: Path, inception: str) -> None:
    places = Places(reference=str(tmp_path / "gone"), inception=inception, clip=str(tmp_path / "gone"))
    with pytest.raises(InputError) as raised:
        prepared(["drift", "fid", "clip", "alignment"], PROMPTS, places)
    message = str(raised.value)
    assert "of the metrics that were asked for, 3 cannot be had" in message
    assert "fid: --reference" in message and "clip: --clip" in message
    assert "alignment: it is of the bundled models' own held-out prompts" in message


def test_alignment_and_distance_of_drawn_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is right for the prompt with its own number, and not for another's."""
    monkeypatch.setattr(metrics, "REAL_PICTURES", 60)
    alignment, frechet = prepared(["alignment", "frechet"], held_out(4), Places())
    drawn, _ = draw_real(60)
    assert frechet.reference is not None and frechet.reference.known is not None
    features = frechet.load()(scorers.as_images(drawn), [""] * 60, 0)
    assert np.allclose(frechet.reference.known().mean, features.mean(0), atol=1e-5)
    own = scorers.as_images(scorers.held_out_pictures(12))
    assert alignment.load()(own, [""] * 12, 0).mean() > 0.9
    assert alignment.load()(own[4:], [""] * 8, 4).mean() > 0.9
    assert alignment.load()(own[4:], [""] * 8, 0).mean() < 0.5


@pytest.mark.parametrize("option", ["reference", "inception", "clip", "pickscore", "hpsv2", "device"])
def test_an_option_whose_metric_was_not_asked_for_is_refused(option: str) -> None:
    asked = "score-device" if option == "device" else option
    with pytest.raises(InputError, match=f"--{asked} was given, and goes with .*among the metrics .drift"):
        prepared(["drift", "alignment"], held_out(2), Places(**{option: "cpu"}))


def test_weights_of_something_else_are_refused_before_any_picture(tmp_path: Path, inception: str) -> None:
    scorers.save_statistics(tmp_path / "real.npz")
    hps = scorers.save_hps(tmp_path / "HPS_v2.1_compressed.pt")
    scorers.tokenizer().save_pretrained(tmp_path)
    good = Places(str(tmp_path / "real.npz"), inception, hpsv2=str(hps), device="cpu")
    assert [metric.name for metric in prepared(["fid", "hpsv2"], PROMPTS, good)] == ["fid", "hpsv2"]
    wrong = shutil.copy(inception, tmp_path / "wrong.pt")
    swapped = Places(str(tmp_path / "real.npz"), str(hps), hpsv2=str(wrong), device="cpu")
    with pytest.raises(InputError) as raised:
        prepared(["fid", "hpsv2"], PROMPTS, swapped)
    message = str(raised.value)
    assert "does not hold the weights of FID's Inception" in message
    assert "wrong.pt is no checkpoint of HPSv2" in message
    state = scorers.hps_state()
    state["visual.proj"] = state["visual.proj"][:, :8]
    torch.save({"state_dict": state}, hps)
    with pytest.raises(InputError, match="is no checkpoint of HPSv2"):
        prepared(["hpsv2"], PROMPTS, Places(hpsv2=str(hps), device="cpu"))


def test_a_device_that_holds_no_numbers_is_refused(inception: str, tmp_path: Path) -> None:
    scorers.save_statistics(tmp_path / "real.npz")
    for device in ("meta", "bogus"):
        with pytest.raises(InputError, match=f"--score-device '{device}' cannot be used by torch here"):
            prepared(["fid"], PROMPTS, Places(str(tmp_path / "real.npz"), inception, device=device))
