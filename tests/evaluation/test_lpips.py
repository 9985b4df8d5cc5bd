"""LPIPS with random weights: the published ones are not at hand, so the formula is what is compared."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from driffusion_trt import InputError, MissingExtraError
from driffusion_trt.evaluation.lpips import Lpips

CONVOLUTIONS = ((0, 3, 64, 11, 4, 2), (3, 64, 192, 5, 1, 2), (6, 192, 384, 3, 1, 1))
CONVOLUTIONS += ((8, 384, 256, 3, 1, 1), (10, 256, 256, 3, 1, 1))
State = dict[str, torch.Tensor]


def torchvision_alexnet() -> torch.nn.Sequential:
    """The convolutional part of torchvision's AlexNet by its published layout, untrained."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for number, into, out, side, stride, padding in CONVOLUTIONS:
        if number in (3, 6):
            layers.append(torch.nn.MaxPool2d(3, 2))
        layers += [torch.nn.Conv2d(into, out, side, stride, padding), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers)


@pytest.fixture(scope="module")
def network() -> torch.nn.Sequential:
    return torchvision_alexnet()


@pytest.fixture(scope="module")
def linear() -> State:
    torch.manual_seed(1)
    return {f"lin{k}.model.1.weight": torch.rand(1, row[2], 1, 1) for k, row in enumerate(CONVOLUTIONS)}


@pytest.fixture(scope="module")
def folder(network: torch.nn.Sequential, linear: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two published files' names and keys."""
    path = tmp_path_factory.mktemp("lpips")
    features = {f"features.{name}": value for name, value in network.state_dict().items()}
    torch.save(features | {"classifier.1.weight": torch.zeros(2, 2)}, path / "alexnet-owt-7be5be79.pth")
    torch.save(linear, path / "alex.pth")
    return path


def picture(seed: int, side: int = 40) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def literal(network: torch.nn.Sequential, linear: State, one: Image.Image, other: Image.Image) -> float:
    """The paper's equation (1): differences of unit features, weighed, mean over places, sum over layers."""
    features = []
    for image in (one, other):
        x = torch.tensor(np.asarray(image), dtype=torch.float64).permute(2, 0, 1)[None] / 127.5 - 1
        x = x - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        x = x / torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
        found = []
        for layer in network.double():
            x = layer(x)
            if isinstance(layer, torch.nn.ReLU):
                found.append(x[0].detach().numpy())
        features.append(found)
    total = 0.0
    for k, (a, b) in enumerate(zip(*features, strict=True)):
        a, b = (one / np.linalg.norm(one, axis=0) for one in (a + 1e-30, b + 1e-30))
        weight = linear[f"lin{k}.model.1.weight"].numpy().reshape(-1, 1, 1)
        total += float((weight * (a - b) ** 2).sum(0).mean())
    return total


def test_it_is_the_papers_formula(folder: Path, linear: State) -> None:
    lpips = Lpips(str(folder))
    for seed in range(3):
        wanted = literal(torchvision_alexnet(), linear, picture(seed), picture(seed + 10))
        assert lpips(picture(seed), picture(seed + 10)) == pytest.approx(wanted, rel=1e-4)


def test_a_distance(folder: Path) -> None:
    lpips = Lpips(str(folder))
    assert lpips(picture(0), picture(0)) == 0
    assert lpips(picture(0), picture(1)) == pytest.approx(lpips(picture(1), picture(0)), rel=1e-6)
    near = Image.fromarray((np.asarray(picture(0)) // 2 * 2).astype(np.uint8))
    assert 0 < lpips(near, picture(0)) < lpips(picture(1), picture(0))


def test_one_state_dict_of_the_authors_package(
    folder: Path, network: torch.nn.Sequential, linear: State, tmp_path: Path
) -> None:
    slices = {0: "slice1.0", 3: "slice2.3", 6: "slice3.6", 8: "slice4.8", 10: "slice5.10"}
    state = {
        f"net.{slices[int(name.split('.')[0])]}.{name.split('.')[1]}": value
        for name, value in torchvision_alexnet().state_dict().items()
    }
    torch.save(state | linear | {"scaling_layer.shift": torch.zeros(1)}, tmp_path / "lpips.pth")
    pair = picture(0), picture(1)
    assert Lpips(str(tmp_path / "lpips.pth"))(*pair) == Lpips(str(folder))(*pair)


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            without("lin3.model.1.weight"),
            r"lin3\.model\.1\.weight is not there, expected shape",
        ),
        (lambda state: state | {"lin0.model.1.weight": torch.zeros(1, 3, 1, 1)}, r"has shape \(1, 3, 1, 1\)"),
        (lambda state: [1, 2], "holds no state dict"),
    ],
)
def test_other_weights(folder: Path, linear: State, tmp_path: Path, change: Any, said: str) -> None:
    (tmp_path / "a.pth").write_bytes((folder / "alexnet-owt-7be5be79.pth").read_bytes())
    torch.save(change(linear), tmp_path / "b.pth")
    with pytest.raises(InputError, match=said):
        Lpips(str(tmp_path))


def test_what_is_no_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which has no file ending in"):
        Lpips(str(tmp_path))
    with pytest.raises(InputError, match="which has no file ending in"):
        Lpips(str(tmp_path / "gone.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(InputError, match="cannot be read as weights"):
        Lpips(str(tmp_path / "text.pth"))


def test_pictures_that_cannot_be_compared(folder: Path) -> None:
    lpips = Lpips(str(folder))
    for one, other in ((picture(0, 40), picture(0, 41)), (picture(0, 30), picture(0, 30))):
        with pytest.raises(InputError, match="of at least 31 pixels a side"):
            lpips(one, other)
    assert lpips(picture(0, 31), picture(1, 31)) > 0


def test_without_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"torch is needed here .*'\.\[eval\]'"):
        Lpips(str(folder))
