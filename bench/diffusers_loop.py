"""What one would run today: diffusers' own loop in torch.

    python -m bench.diffusers_loop MODEL GUIDANCE REPEATS

prints its milliseconds as JSON, one entry a repeat, with two threads and torch's own way to wait for work.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from driffusion_trt.export.demo.denoiser import DEMOS, denoiser_of

from .calls import Clock
from .crowd import Demo, both

__all__ = ["diffusers_loop"]


def diffusers_loop(demo: Demo, scale: float, threads: int, steps: int) -> Clock:
    """diffusers' scheduler and network in torch: what one would write today."""
    torch.set_num_threads(threads)
    kind = DEMOS[demo.folder.spec.family]
    made: Any = kind.make().eval()
    if hasattr(made, "unet"):  # for training they have another, whose backward pass is faster
        made.unet.set_attn_processor(AttnProcessor2_0())
    network, scheduler = denoiser_of(made), kind.scheduler()
    for parameter in network.parameters():  # zero-initialised layers would be no fair load
        torch.nn.init.normal_(parameter, std=0.02)
    given, without = demo.embeddings(demo.prompts[:1])
    told = {name: torch.from_numpy(value) for name, value in both(without, given).items()}
    latents_name, time_name = demo.folder.spec.denoiser_inputs[:2]

    @torch.inference_mode()
    def run() -> float:
        latents = torch.randn(1, *demo.shape)
        scheduler.set_timesteps(steps)
        latents *= getattr(scheduler, "init_noise_sigma", 1.0)
        scaled = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)
        start = time.perf_counter()
        for timestep in scheduler.timesteps:
            rows = scaled(torch.cat([latents, latents]), timestep)
            out = network(**{latents_name: rows, time_name: timestep.float().expand(2), **told})
            first, second = out.chunk(2)
            latents = scheduler.step(first + scale * (second - first), timestep, latents).prev_sample
        return time.perf_counter() - start

    return run


def main(model: str, scale: str, repeats: str) -> None:
    demo = Demo([0], model)
    run = diffusers_loop(demo, float(scale), 2, demo.folder.spec.steps)
    run()  # warm up
    print(json.dumps([1e3 * run() for _ in range(int(repeats))]))


if __name__ == "__main__":
    main(*sys.argv[1:])
