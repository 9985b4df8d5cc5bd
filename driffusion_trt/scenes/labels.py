"""Scenes as labels, for the classifier that checks prompts; no torch here."""

from __future__ import annotations

from .. import scenes

LAYOUTS = ("one", "side by side", "one above the other")
COLOURS = ("own", *scenes.COLOURS)
# The first slot is the only, the left or the upper object; the second is the right or the lower one.
HEADS = {
    "layout": len(LAYOUTS),
    "ground": len(scenes.COLOURS),
    "first_kind": len(scenes.KINDS),
    "first_colour": len(COLOURS),
    "second_kind": len(scenes.KINDS),
    "second_colour": len(COLOURS),
}
IGNORED = -1  # a label that a scene does not have, or that its caption leaves open


def labels(scene: scenes.Scene, ground: str | None) -> list[int]:
    """What the heads should say of a scene, in the order of `HEADS`."""
    things: list[scenes.Thing | None] = [scene.first, scene.second]
    layout = 0
    if scene.relation is not None:
        (dx, dy), _ = scenes.RELATIONS[scene.relation]
        layout = 1 if dx else 2
        if dx + dy > 0:
            things.reverse()
    said = [layout, IGNORED if ground is None else list(scenes.COLOURS).index(ground)]
    for thing in things:
        said.append(IGNORED if thing is None else scenes.KINDS.index(thing.kind))
        said.append(IGNORED if thing is None else COLOURS.index(thing.colour or "own"))
    return said
