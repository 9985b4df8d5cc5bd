"""What `--modes` and `--lanes` ask for."""

from __future__ import annotations

import pytest

from driffusion_trt import InputError
from driffusion_trt.benchmark.cells import DEFAULT_MODES, cells


def test_each_mode_with_each_number_of_lanes_and_sequential_first() -> None:
    found = cells("aggressive,tolerance:tolerance=0.005", [1, 2, 4])
    assert [(one.name, one.lanes) for one in found] == [
        ("sequential", 1),
        ("aggressive:lanes=2", 2),
        ("aggressive:lanes=4", 4),
        ("tolerance:tolerance=0.005:lanes=2", 2),
        ("tolerance:tolerance=0.005:lanes=4", 4),
    ]
    assert found[-1].settings == {"mode": "tolerance", "lanes": 4, "tolerance": 0.005}


def test_what_takes_one_lane() -> None:
    found = cells("split,sequential:threads=2,skip:rounds=12,skip", [2, 3])
    assert [one.name for one in found] == [
        *("sequential", "split", "sequential:threads=2", "skip:rounds=12", "skip:lanes=2", "skip:lanes=3"),
    ]
    assert found[1].settings == {"mode": "sequential", "lanes": 1, "split_guidance": True}
    assert (found[1].devices, found[2].threads, found[2].settings["mode"]) == (2, 2, "sequential")


@pytest.mark.parametrize(
    "text",
    ["window:rounds=9:order=1:carry=G", "window:blocks=1+2+3", "auto:quality=fast", "aggressive:split=yes"],
)
def test_a_name_means_the_same_cell(text: str) -> None:
    _, one = cells(text, [3])
    assert cells(one.name, [7])[1] == one and cells(one.name, [7])[1].settings == one.settings


def test_lanes_of_a_mode_count_and_doubles_are_one() -> None:
    found = cells("aggressive:lanes=3,aggressive,sequential", [2, 3, 3])
    assert [one.name for one in found] == ["sequential", "aggressive:lanes=3", "aggressive:lanes=2"]
    assert len(cells(DEFAULT_MODES, [2])) == 5


@pytest.mark.parametrize(
    ("modes", "lanes", "said"),
    [
        ("agressive", [2], r"there is no mode 'agressive'; did you mean 'aggressive'\?"),
        ("", [2], "there is no mode ''"),
        ("window:round=3", [2], r"'round=3' is no key=value .*did you mean 'rounds'\?"),
        ("window:rounds", [2], "'rounds' is no key=value"),
        ("window:rounds=x", [2], "'x' is no value of rounds"),
        ("skip:rounds=0", [2], "'0' is no value of rounds"),
        ("window:split=maybe", [2], "'maybe' is no value of split"),
        ("split:split=no", [2], "split is sequential with split=yes"),
        ("sequential:lanes=4", [2], "sequential takes one lane whatever there is"),
        ("split:lanes=2", [2], "split takes one lane whatever there is"),
        ("skip:rounds=12:lanes=4", [2], "skip with its rounds takes one lane"),
        ("window:rounds=9:rounds=12", [2], "with the same key twice"),
        ("aggressive", [1], "one lane is sequential"),
        ("aggressive", [2, 0], "lanes=0 was asked"),
        ("aggressive", [], "no lanes were given"),
    ],
)
def test_what_there_is_not(modes: str, lanes: list[int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cells(modes, lanes)
