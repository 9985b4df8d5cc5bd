"""Nothing in the GPU lanes' synchronisation is there for nothing, and nothing wrong in it goes unseen.

Every event that is recorded or waited for, every copy and every launch of a picture is left out, one at a
time, and buffers are swapped. Each must be caught: by the race detector, by a violation of the driver's
rules, or by the picture. `python -m bench.gpu_mutations` writes the verdict of each.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from gpumutants import SWAPS
from gputrial import SETUPS, by_kind, verdicts

from driffusion_trt.engines.manifest import ModelFolder

# How each kind of mutation may be caught, whatever the setup, round, worker or draft.
VERDICTS = {
    "worker: clear flags": "picture",
    "worker: set conditioning": "picture",
    "the lead: noise": "picture",
    "the lead computes: draft": "picture",
    "the lead computes: messages": "picture or violation",
    "the lead computes: what is kept": "picture",
    "the event of the lead's messages is recorded": "race",
    "worker waits for the lead's messages": "race",
    "worker: predict": "picture",
    "worker: send back": "picture",
    "the event of worker's predictions is recorded": "race",
    "the lead waits for worker's predictions": "race",
    "worker: fetch": "picture or violation",
    "the lead computes: refine": "picture",
    "worker: report": "picture",
    "the event of worker's report is recorded": "race",
    "the lead waits for worker's report": "race",
    "the lead: the picture to the host": "picture",
    "the event of the picture is recorded": "race",
    "the host waits for the picture": "race",
    "worker: post": "picture or violation",
    "worker: receive": "picture",
    "the lead computes: combine": "picture",
    "the lead computes: observe": "picture",
    "swapped: inbox and outbox": "race or violation",
    "swapped: timesteps of two drafts": "picture",
    "swapped: noises of two steps": "picture",
    "swapped: a place that is shared and one that is free": "picture or race",
    "swapped: prompt and no prompt, on one device": "picture",
    "swapped: results with and without the prompt, on one device": "picture",
    "swapped: places of two lanes' predictions": "picture",
    "swapped: outboxes of two lanes": "picture",
    "swapped: places of a lane's predictions, sent": "picture",
    "swapped: two places of latents": "picture",
    "swapped: places of a lane's predictions, received": "picture",
    "swapped: pinned memory of messages and of predictions": "violation",
    "swapped: prompt and no prompt, on two devices": "picture",
    "swapped: results with and without the prompt, on two devices": "picture",
}


@pytest.fixture(scope="module")
def seen() -> dict[str, set[str]]:
    """Verdicts by kind, of all setups."""
    return {}


@pytest.mark.parametrize("setup", SETUPS)
def test_no_mutation_survives(
    folder: ModelFolder, kernels_library: Path, setup: str, seen: dict[str, set[str]]
) -> None:
    found = verdicts(setup, folder, kernels_library)
    assert [name for name, verdict in found.items() if verdict not in ("race", "violation", "picture")] == []
    for kind, counts in by_kind(found).items():
        print(f"{kind:60} {', '.join(f'{verdict}: {count}' for verdict, count in counts.items())}")
        seen.setdefault(kind, set()).update(counts)
        assert set(counts) <= set(VERDICTS[kind].split(" or ")), kind


def test_every_mutation_of_the_table_was_tried(seen: dict[str, set[str]]) -> None:
    if len(seen) < 3:
        pytest.skip("the setups were not run")
    assert {kind: " or ".join(sorted(verdicts)) for kind, verdicts in seen.items()} == VERDICTS
    assert {kind.removeprefix("swapped: ") for kind in VERDICTS} >= set(SWAPS)
