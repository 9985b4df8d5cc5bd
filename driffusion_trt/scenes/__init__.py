"""Captioned pictures drawn by rule: one or two objects on a coloured ground.

A scene is drawn from an index alone, so a data set is a range of integers: the same
index gives the same caption and the same pixels on every machine. Objects are Noto
emoji (see NOTICE), as they are or tinted, and four coloured shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
_DRAWN = 2 * SIZE  # drawn at twice the size, then averaged down

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 220, 50),
    "green": (50, 160, 60),
    "blue": (45, 90, 220),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
TINTS = ("red", "orange", "yellow", "green", "blue", "purple")
SHAPES = ("circle", "square", "star", "triangle")
EMOJI = (
    "apple", "car", "cat", "dog", "fish", "fox", "frog", "lemon", "mushroom", "owl", "rocket", "tree",
)  # fmt: skip
KINDS = EMOJI + SHAPES
RELATIONS = {
    "left of": ((-1, 0), (1, 0)),
    "right of": ((1, 0), (-1, 0)),
    "above": ((0, -1), (0, 1)),
    "below": ((0, 1), (0, -1)),
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: what it is, and its colour (None: an emoji as it is)."""

    kind: str
    colour: str | None

    def words(self) -> str:
        name = f"{self.colour} {self.kind}" if self.colour else self.kind
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption says; `ground` None means that the caption does not name it."""

    first: Thing
    second: Thing | None
    relation: str | None
    ground: str | None

    def caption(self) -> str:
        words = self.first.words()
        if self.second is not None:
            words += f" {self.relation} {self.second.words()}"
        if self.ground is not None:
            words += f" on {'an' if self.ground[0] in 'aeiou' else 'a'} {self.ground} background"
        return words


def _draw_thing(rng: np.random.Generator, ground: str) -> Thing:
    if rng.random() < 0.55:
        tint = str(rng.choice(TINTS)) if rng.random() < 0.3 else None
        if tint == ground:
            tint = None
        return Thing(str(rng.choice(EMOJI)), tint)
    return Thing(str(rng.choice(SHAPES)), str(rng.choice([c for c in COLOURS if c != ground])))


def draw_scene(rng: np.random.Generator) -> tuple[Scene, str]:
    """A random scene and the ground it stands on, which the caption may leave out."""
    ground = str(rng.choice(list(COLOURS)))
    first = _draw_thing(rng, ground)
    second = relation = None
    if rng.random() < 0.5:
        relation = str(rng.choice(list(RELATIONS)))
        second = _draw_thing(rng, ground)
        while second.kind == first.kind:
            second = _draw_thing(rng, ground)
    return Scene(first, second, relation, ground if rng.random() < 0.8 else None), ground


@cache
def _sprite(kind: str) -> Image.Image:
    return Image.open(Path(__file__).parent / "emoji" / f"{kind}.png").convert("RGBA")


@cache
def _tinted(kind: str, colour: str | None) -> Image.Image:
    """The emoji in shades of one colour: its own lights and darks are kept."""
    sprite = _sprite(kind)
    if colour is None:
        return sprite
    pixels = np.asarray(sprite, np.float32)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    shade = np.clip(0.35 + 0.9 * light, 0, 1.25)[..., None]
    tinted = np.clip(np.array(COLOURS[colour], np.float32) * shade, 0, 255)
    return Image.fromarray(np.concatenate([tinted, pixels[..., 3:]], -1).astype(np.uint8), "RGBA")


def _polygon(kind: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    corners = {"square": 4, "triangle": 3, "star": 10}[kind]
    turn = {"square": math.pi / 4, "triangle": 0.0, "star": 0.0}[kind]
    points = []
    for i in range(corners):
        r = radius * (0.45 if kind == "star" and i % 2 else 1.0)
        angle = turn + 2 * math.pi * i / corners
        points.append((x + r * math.sin(angle), y - r * math.cos(angle)))
    return points


def _paste(canvas: Image.Image, thing: Thing, x: float, y: float, width: float) -> None:
    if thing.kind in EMOJI:
        side = round(width)
        sprite = _tinted(thing.kind, thing.colour).resize((side, side), Image.Resampling.BILINEAR)
        canvas.paste(sprite, (round(x - side / 2), round(y - side / 2)), sprite)
        return
    assert thing.colour is not None
    pen, fill, radius = ImageDraw.Draw(canvas), COLOURS[thing.colour], 0.46 * width
    if thing.kind == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        pen.polygon(_polygon(thing.kind, x, y, radius * (1.2 if thing.kind != "square" else 1.25)), fill=fill)


def paint(scene: Scene, ground: str, rng: np.random.Generator) -> np.ndarray:
    """The picture of a scene, uint8 (64, 64, 3); sizes and places vary a little with `rng`."""
    shade = np.clip(np.array(COLOURS[ground]) + rng.normal(0, 5, 3), 0, 255).astype(int)
    canvas = Image.new("RGB", (_DRAWN, _DRAWN), tuple(int(v) for v in shade))
    if scene.second is None or scene.relation is None:
        x, y = _DRAWN / 2 + rng.uniform(-8, 8, 2)
        _paste(canvas, scene.first, x, y, rng.uniform(70, 84))
    else:
        for thing, (dx, dy) in zip((scene.first, scene.second), RELATIONS[scene.relation], strict=True):
            x = _DRAWN / 2 + 30 * dx + rng.uniform(-4, 4)
            y = _DRAWN / 2 + 30 * dy + rng.uniform(-4, 4)
            _paste(canvas, thing, x, y, rng.uniform(50, 58))
    return np.asarray(canvas.reduce(2))


def example(index: int, seed: int = 0) -> tuple[np.ndarray, Scene]:
    """Picture (64, 64, 3) uint8 and scene number `index` of the endless data set `seed`."""
    rng = np.random.default_rng([seed, index])
    scene, ground = draw_scene(rng)
    return paint(scene, ground, rng), scene


def caption(index: int, seed: int = 0) -> str:
    """The caption of `example(index, seed)`, without drawing it."""
    return draw_scene(np.random.default_rng([seed, index]))[0].caption()


def vocabulary() -> list[str]:
    """Every word a caption can have, in a fixed order."""
    words = {"a", "an", "on", "background", *KINDS, *COLOURS}
    words.update(word for relation in RELATIONS for word in relation.split())
    return sorted(words)
