"""The judge of the bundled models: it must read drawn pictures right, and its sums must be right."""

from __future__ import annotations

import numpy as np
import pytest

import driffusion_trt as dt
from driffusion_trt import scenes
from driffusion_trt.evaluation import heldout
from driffusion_trt.scenes.labels import HEADS, IGNORED, labels


def test_what_a_prompt_leaves_open_is_not_counted() -> None:
    wanted = np.array([[0, 1, 2, 3, IGNORED, IGNORED], [1, IGNORED, 4, 0, 5, 2]])
    read = np.array([[0, 1, 2, 3, 9, 9], [1, 7, 4, 0, 5, 1]])
    assert heldout.right(read, wanted).tolist() == [[True] * 6, [True] * 5 + [False]]
    of_prompts = np.array([heldout.prompt(7 + k)[1] for k in range(6)])
    assert heldout.shown(of_prompts, 7).all()
    of_prompts[2, 2] += 1  # another kind of thing
    assert heldout.shown(of_prompts, 7).tolist() == [True, True, False, True, True, True]


def test_how_many_captions_training_saw_word_for_word() -> None:
    """The shares that heldout.py and docs/evaluating.md name."""
    training = {scenes.caption(k) for k in range(32_000)}
    for first, every, one, two in ((0, 0.63, 0.99, 0.22), (2000, 0.525, 1.0, 0.15)):
        asked = [heldout.prompt(first + k) for k in range(200)]
        seen = np.array([caption in training for caption, _ in asked])
        single = np.array([wanted[list(HEADS).index("layout")] == 0 for _, wanted in asked])
        assert seen.mean() == pytest.approx(every, abs=1e-9)
        assert (seen[single].mean(), seen[~single].mean()) == pytest.approx((one, two), abs=0.005)


def test_the_checker_reads_drawn_pictures() -> None:
    checker = heldout.Checker()
    drawn = np.stack([scenes.example(k, 9)[0] for k in range(200)])
    read, features = checker(drawn)
    truth = []
    for k in range(200):
        scene, ground = scenes.draw_scene(np.random.default_rng([9, k]))
        truth.append(labels(scene, ground))
    assert heldout.right(read, np.array(truth)).all(1).mean() > 0.97
    assert features.shape[0] == 200
    mirrored, _ = checker(drawn[:, :, ::-1])
    side_by_side = read[:, list(HEADS).index("layout")] == 1
    kinds = [list(HEADS).index("first_kind"), list(HEADS).index("second_kind")]
    swapped = (mirrored[side_by_side][:, kinds] == read[side_by_side][:, kinds[::-1]]).mean()
    assert swapped > 0.7, "left and right are told apart (mirrored cars and fish are new to it)"


def test_held_out_prompts_are_captions_of_their_labels() -> None:
    for k in range(50):
        caption, wanted = heldout.prompt(k)
        named = dict(zip(HEADS, wanted, strict=True))
        assert scenes.KINDS[named["first_kind"]] in caption
        assert (named["ground"] == IGNORED) == ("background" not in caption)
        assert (named["layout"] == 0) == (named["second_kind"] == IGNORED)


@pytest.mark.parametrize("mode", ["sequential", "aggressive", "conservative"])
def test_the_bundled_model_draws_what_is_asked(mode: str) -> None:
    """Held-out prompts as they come; over 500 of them 93 % are right."""
    asked = [heldout.prompt(k) for k in range(16)]
    with dt.Pipeline.load("demo", devices=2) as pipe:
        images = pipe([words for words, _ in asked], seed=range(16), steps=25, mode=mode, lanes=2).images
    read, _ = heldout.Checker()(np.stack([np.asarray(image) for image in images]))
    assert heldout.shown(read, 0).mean() >= 0.8


def test_pictures_of_another_size_are_made_smaller() -> None:
    drawn, _ = heldout.draw_real(20)
    large = drawn.repeat(2, 1).repeat(2, 2)
    checker = heldout.Checker()
    assert np.array_equal(checker(large)[0], checker(drawn)[0])
    assert np.allclose(checker(large)[1], checker(drawn)[1])


def test_drawn_pictures_go_on_from_any_number() -> None:
    every, wanted = heldout.draw_real(5)
    later, of_later = heldout.draw_real(2, 3)
    assert np.array_equal(later, every[3:]) and np.array_equal(of_later, wanted[3:])
