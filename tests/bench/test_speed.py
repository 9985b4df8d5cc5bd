"""Network calls of a denoising loop, told apart by rounds."""

from __future__ import annotations

import numpy as np
import pytest

import driffusion_trt as dt
from bench.calls import Watched, rounds_of
from bench.crowd import Demo
from bench.speed import SCALE, Loop
from driffusion_trt.runtime.host import HostLanes
from driffusion_trt.sampling.noise import noise_streams


def test_a_round_begins_when_all_calls_of_the_one_before_have_ended() -> None:
    calls = [(0.0, 4.0), (1.0, 3.0), (9.0, 12.0), (4.5, 5.5), (9.5, 11.0), (5.5, 9.0)]
    assert rounds_of(calls) == [[4.0, 2.0], [1.0], [3.5], [3.0, 1.5]]
    assert rounds_of([]) == []


@pytest.mark.parametrize("mode", ["aggressive", "tolerance"])
def test_a_loop_tells_its_rounds_and_changes_no_picture(mode: str) -> None:
    demo = Demo([2000])
    plan = dt.make_plan(demo.schedule(8), mode=mode, lanes=2)
    watched = Watched(demo.folder.network("denoiser"))
    with HostLanes(lambda: watched, 2) as lanes:
        loop = Loop(demo, lanes, plan, watched)
        seconds = loop()
        given, without = demo.embeddings([2000])
        streams = noise_streams([2000], 1)
        noise = streams.draw(demo.shape)
        made = lanes.job(given, SCALE, without).sample(plan, noise, streams)
    assert len(loop.widths) == made.stats.rounds and sum(loop.widths) == made.stats.predictions
    assert 0.5 * seconds < loop.network_s < seconds
    with HostLanes(demo.folder.network("denoiser"), 2) as plain:
        streams = noise_streams([2000], 1)
        again = plain.job(given, SCALE, without).sample(plan, streams.draw(demo.shape), streams)
    assert np.array_equal(made.latents, again.latents)
