"""Prompts for those who give none: a handful, so that no figure hangs on one picture."""

from __future__ import annotations

__all__ = ["DEMO", "GENERAL"]

# What the bundled models draw: evaluation.heldout's prompts 2000 to 2015.
DEMO = (
    "a purple triangle on a blue background",
    "a cat left of an owl on a green background",
    "an orange circle on a blue background",
    "a white triangle right of a purple car on an orange background",
    "a yellow triangle on an orange background",
    "a rocket above a blue circle",
    "a green dog",
    "a red triangle right of an apple on a white background",
    "a frog below a dog on a blue background",
    "a black triangle on a red background",
    "a white triangle right of a yellow frog",
    "a fox left of an orange triangle",
    "a rocket below an owl",
    "a white triangle right of a yellow square on a purple background",
    "a fox below a dog on a red background",
    "a frog on a white background",
)
GENERAL = (
    "a lighthouse on a cliff in a storm, oil painting",
    "a red bicycle leaning against a white brick wall",
    "a bowl of ramen with a soft egg, seen from above",
    "an astronaut planting a tree on the moon",
    "a portrait of an old fisherman in a yellow coat",
    "a narrow street in the rain at night, neon signs",
    "a glass chess set on a wooden table, shallow depth of field",
    "two foxes asleep in autumn leaves",
)
