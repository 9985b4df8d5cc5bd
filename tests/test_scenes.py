"""The demo's pictures are drawn from their index alone, and show what their caption says."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from driffusion_trt import scenes
from driffusion_trt.scenes.labels import HEADS, IGNORED, labels


@given(st.integers(0, 2**40), st.integers(0, 9))
def test_an_index_is_a_picture(index: int, seed: int) -> None:
    picture, scene = scenes.example(index, seed)
    again, _ = scenes.example(index, seed)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, again)
    assert scenes.caption(index, seed) == scene.caption()
    assert set(scene.caption().split()) <= set(scenes.vocabulary())


@given(st.integers(0, 2**40))
def test_the_ground_is_painted_where_nothing_is(index: int) -> None:
    rng = np.random.default_rng([0, index])
    scene, ground = scenes.draw_scene(rng)
    corner = scenes.paint(scene, ground, rng)[0, 0].astype(int)
    distances = {name: np.abs(corner - colour).sum() for name, colour in scenes.COLOURS.items()}
    assert min(distances, key=lambda name: distances[name]) == ground


def test_labels_follow_the_place_and_not_the_order_of_words() -> None:
    cat, star = scenes.Thing("cat", None), scenes.Thing("star", "red")
    left = dict(zip(HEADS, labels(scenes.Scene(cat, star, "left of", "blue"), "blue"), strict=True))
    right = dict(zip(HEADS, labels(scenes.Scene(star, cat, "right of", None), None), strict=True))
    assert left["layout"] == right["layout"] == 1
    assert left["first_kind"] == right["first_kind"] == scenes.KINDS.index("cat")
    assert left["second_colour"] == right["second_colour"] == 1 + list(scenes.COLOURS).index("red")
    assert left["first_colour"] == 0
    assert right["ground"] == IGNORED
    alone = dict(zip(HEADS, labels(scenes.Scene(star, None, None, "blue"), "blue"), strict=True))
    assert (alone["layout"], alone["second_kind"], alone["second_colour"]) == (0, IGNORED, IGNORED)
