"""The scoring networks, with small random weights in the published file formats, against other code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scorers
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from driffusion_trt import ModelError
from driffusion_trt.evaluation import hps, inception
from driffusion_trt.evaluation.clip import ClipScore
from driffusion_trt.evaluation.hps import HpsScore
from driffusion_trt.evaluation.inception import Inception, InceptionFeatures

TEXTS = ["a red fox", "red red cat on the mat of the house and the dog"]  # the second is cut off


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scorers.save_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-6726825d.pth"
    scorers.save_inception(path)
    return path


# Inception


def test_inception_has_the_tensors_of_the_published_weights() -> None:
    """Those of torchvision's inception_v3 with 1008 classes and no auxiliary ones, as in pytorch-fid."""
    state = Inception().state_dict()
    assert len(state) == 566
    assert sum(value.numel() for value in state.values()) == 23_885_486
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_5b.branch_pool.bn.running_mean"] == (32,)
    assert shapes["Mixed_6b.branch7x7dbl_5.conv.weight"] == (192, 128, 1, 7)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["fc.weight"] == (1008, 2048)


def test_inception_computes_what_torch_fidelity_does(weights: Path) -> None:
    """FeatureExtractorInceptionV3 of torch-fidelity 0.4.0 with these weights, pictures of its own size."""
    features = InceptionFeatures(weights, "cpu")(scorers.pictures(3, 299, 299), [""] * 3, 0)
    assert features.shape == (3, 2048) and features.dtype == np.float32
    some = features[:, [0, 100, 330, 400, 800, 900, 1300, 1500, 1900, 2047]]
    fidelity = [
        [0.0036, 2.6280, 0.6084, 0.0239, 0.5708, 2.3284, 0.0, 0.5190, 0.0, 6.6658],
        [0.0077, 2.7933, 0.6293, 0.0211, 0.5161, 2.5715, 0.0, 0.6229, 0.0, 6.9072],
        [0.0, 2.6243, 0.5817, 0.0446, 0.6718, 2.2435, 0.0002, 0.4789, 0.0, 7.2900],
    ]
    assert some == pytest.approx(np.array(fidelity), abs=2e-4)
    assert np.linalg.norm(features, axis=1) == pytest.approx([54.13623, 56.75147, 57.53388], rel=1e-5)


def test_pictures_are_prepared_without_aliasing() -> None:
    """Every second pixel white is grey when it is made smaller, and a plain colour stays what it is."""
    fine = np.zeros((598, 598, 3), np.uint8)
    fine[::2, ::2] = fine[1::2, 1::2] = 255
    inside = inception.prepared(Image.fromarray(fine))[:, 5:-5, 5:-5]
    assert np.abs(inside - (127.5 - 128) / 128).max() < 0.01
    plain = inception.prepared(Image.new("RGB", (40, 70), (0, 128, 255)))
    assert plain.shape == (3, 299, 299) and plain.dtype == np.float32
    assert plain.mean((1, 2)) == pytest.approx([-1, 0, 127 / 128])


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="does not hold the weights of FID's Inception"):
        InceptionFeatures(path, "cpu")
    path.write_bytes(b"<html>")
    with pytest.raises(ModelError, match=r"pt_inception-2015-12-05-6726825d\.pth does"):
        InceptionFeatures(path, "cpu")


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ModelError):
        InceptionFeatures(tmp_path / "trap.pth", "cpu")
    with pytest.raises(ModelError):
        HpsScore(tmp_path / "trap.pth", tmp_path, "cpu")
    assert not (tmp_path / "sprung").exists()


# CLIP score and PickScore


def test_scores_are_transformers_own_logits(clip: Path) -> None:
    """`logits_per_image` is exp(logit_scale) · cos, pair by pair."""
    pictures, model = scorers.pictures(2, 40, 60), CLIPModel.from_pretrained(clip)
    both = CLIPProcessor.from_pretrained(clip)(
        text=TEXTS, images=pictures, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**both).logits_per_image.diagonal().numpy()
    pick = ClipScore(clip, clip, "cpu", preference=True)(pictures, TEXTS, 0)
    assert pick == pytest.approx(logits, rel=1e-4)
    cosine = logits / np.exp(model.logit_scale.item())
    score = ClipScore(clip, clip, "cpu", preference=False)(pictures, TEXTS, 0)
    assert score == pytest.approx(100 * np.maximum(cosine, 0), rel=1e-4, abs=1e-6)
    assert abs(cosine[0] - cosine[1]) > 1e-3, "or it does not matter which prompt is whose"


def test_a_cosine_below_zero_counts_as_none(clip: Path) -> None:
    scorer = ClipScore(clip, clip, "cpu", preference=False)
    with torch.no_grad():
        scorer._model.visual_projection.weight.neg_()
        turned = scorer(scorers.pictures(2, 40, 60), TEXTS, 0)
        scorer._model.visual_projection.weight.neg_()
        straight = scorer(scorers.pictures(2, 40, 60), TEXTS, 0)
    assert np.all((turned == 0) != (straight == 0))


def test_a_folder_that_is_no_clip_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ModelError, match="cannot be loaded as a CLIP model"):
        ClipScore(tmp_path, tmp_path, "cpu", preference=False)


# HPSv2


def test_hps_scores_are_those_of_open_clip(tmp_path: Path) -> None:
    """open_clip 3.3.0 with the same weights, pictures prepared by torchvision as HPSv2 does it."""
    words = scorers.tokenizer()
    words.save_pretrained(tmp_path)
    path = scorers.save_hps(tmp_path / "HPS_v2.1_compressed.pt")
    pictures = [*scorers.pictures(1, 40, 57), *scorers.pictures(1, 64, 64, seed=8)]
    scores = HpsScore(path, tmp_path, "cpu")(pictures, TEXTS, 0)
    assert scores == pytest.approx([-25.98177, -25.88886], abs=2e-4)


def test_hps_pictures_are_padded_to_a_square() -> None:
    """Values of torchvision's ToTensor, resize (bicubic, no aliasing), pad and Normalize at four places."""
    wide, square = scorers.pictures(1, 40, 57)[0], scorers.pictures(1, 64, 64, seed=8)[0]
    got = torch.stack([hps.prepared(one, 28) for one in (wide, square)])
    some = [got[place].item() for place in ((0, 0, 0, 0), (0, 0, 8, 5), (0, 2, 20, 27), (1, 1, 13, 13))]
    assert some == pytest.approx([-1.79226, 1.82078, 0.8551, 1.51907], abs=1e-5)
    assert hps.prepared(square, 64).shape == (3, 64, 64)


def test_every_weight_of_hps_has_a_place() -> None:
    state = scorers.hps_state()
    renamed = hps.as_transformers(state)
    there = CLIPModel(hps.config_of(state)).state_dict()
    shapes = {name: value.shape for name, value in there.items() if not name.endswith("position_ids")}
    assert {name: value.shape for name, value in renamed.items()} == shapes
    with pytest.raises(KeyError, match="score_predictor"):
        hps.as_transformers({**state, "score_predictor.weight": torch.zeros(1)})


def test_another_file_is_no_checkpoint_of_hps(tmp_path: Path) -> None:
    for number, content in enumerate(({"weights": {}}, {"state_dict": {"x": torch.zeros(1)}})):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(ModelError, match="is no checkpoint of HPSv2"):
            HpsScore(tmp_path / f"{number}.pt", tmp_path, "cpu")
    path = scorers.save_hps(tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(ModelError, match="has no tokenizer of CLIP"):
        HpsScore(path, tmp_path, "cpu")
