"""The fields of a request: one table for what is checked and what the schema says."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .._errors import did_you_mean
from ..sampling.plan import BASELINES, MODES
from .answers import ApiError
from .limits import Limits

__all__ = ["EDIT", "GENERATION", "QUALITIES", "Field", "checked", "fields_of"]

# OpenAI's names of qualities beside ours; "auto" is what is taken where nothing is said.
QUALITIES = {
    "exact": "exact", "high": "high", "balanced": "balanced", "fast": "fast", "auto": None,
    "low": "fast", "medium": "balanced", "standard": "balanced", "hd": "high", "xhigh": "exact",
    "max": "exact",
}  # fmt: skip
SEEDS = 2**53 - 1  # the largest whole number that every JSON reader keeps
_KINDS: dict[str, Any] = {"string": str, "integer": int, "number": int | float, "boolean": bool}
_NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,4})?", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: a kind and its bounds. `most` of a text is its length."""

    about: str
    kind: Literal["string", "integer", "number", "boolean"]
    least: float | None = None
    most: float | None = None
    names: tuple[str, ...] = ()
    pattern: str = ""
    required: bool = False

    def schema(self) -> dict[str, Any]:
        """Its JSON Schema (2020-12); a field that may be left out may be null."""
        found: dict[str, Any] = {"type": self.kind if self.required else [self.kind, "null"]}
        if self.names:
            found["enum"] = [*self.names, *(() if self.required else (None,))]
        if self.kind == "string":
            found |= {"pattern": self.pattern} if self.pattern else {}
            found |= {"minLength": int(self.least)} if self.least is not None else {}
            found |= {"maxLength": int(self.most)} if self.most is not None else {}
        else:
            found |= {"minimum": self.least} if self.least is not None else {}
            found |= {"maximum": self.most} if self.most is not None else {}
        return {**found, "description": self.about}

    def check(self, name: str, given: Any) -> Any:
        """The value as it is used. Raises ApiError."""
        value: Any = given
        if self.kind == "integer" and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, _KINDS[self.kind]) or (isinstance(value, bool) and self.kind != "boolean"):
            article = "an" if self.kind == "integer" else "a"
            raise wrong(name, f"must be {article} {self.kind}, not {_shown(value)}", "invalid_type")
        if self.kind == "string":
            self._check_text(name, value)
        elif self.kind != "boolean":
            self._check_number(name, value)
        return value

    def _check_number(self, name: str, value: float) -> None:
        least, most = self.least, self.most
        finite = isinstance(value, int) or math.isfinite(value)
        if not finite or (least is not None and value < least) or (most is not None and value > most):
            bounds = f"from {least} to {most}" if most is not None else f"at least {least}"
            raise wrong(name, f"must be {bounds}, not {_shown(value)}")

    def _check_text(self, name: str, value: str) -> None:
        if self.names and value not in self.names:
            raise wrong(name, f"cannot be {_shown(value)}{did_you_mean(value[:100], self.names)}")
        if self.most is not None and len(value) > self.most:
            raise wrong(name, f"has {len(value)} characters; the most is {self.most}", "string_too_long")
        if self.least is not None and len(value) < self.least:
            raise wrong(name, "is empty", "string_too_short")
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise wrong(name, f"cannot be {_shown(value)}: {self.about}")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise wrong(name, "is not valid Unicode")

    def read(self, name: str, text: str) -> Any:
        """The value that a form's text stands for. Raises ApiError."""
        if self.kind in ("integer", "number"):
            if not _NUMBER.fullmatch(text):
                raise wrong(name, f"must be a number, not {_shown(text)}", "invalid_type")
            return int(text) if text.lstrip("-").isdecimal() else float(text)
        return _BOOLEANS.get(text.lower(), text) if self.kind == "boolean" else text


def wrong(name: str, why: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"{name} {why}", code, param=name)


def _shown(value: object) -> str:
    """A value as it may be told; of a list its kind, since it can be deeper than `repr` goes."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_MOST_PARTIAL = 100
GENERATION: Mapping[str, Field] = {
    "prompt": Field("What the picture shows.", "string", least=1, required=True),
    "model": Field("The model that is served; by default it.", "string", most=200),
    "n": Field("Pictures to make, with seeds that follow one another.", "integer", least=1),
    "size": Field(
        "Width x height in pixels, or auto for the model's.",
        "string",
        pattern="(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})",
    ),
    "response_format": Field(
        "Pictures as base64 (by default), or links.", "string", names=("b64_json", "url")
    ),
    "user": Field("Whom this is for: those of one key take turns.", "string", most=200),
    "safety_identifier": Field("As user, which it goes before.", "string", most=200),
    "quality": Field(
        "Of mode auto: how near to the sequential picture. OpenAI's names mean the nearest of ours.",
        "string",
        names=tuple(QUALITIES),
    ),
    "style": Field("Accepted, and without effect.", "string", names=("vivid", "natural")),
    "moderation": Field("Accepted; nothing is moderated here.", "string", names=("low", "auto")),
    "background": Field("Pictures are opaque.", "string", names=("opaque", "auto")),
    "output_format": Field("By default png.", "string", names=("png", "jpeg", "webp")),
    "output_compression": Field("Quality of jpeg and webp in percent.", "integer", least=0, most=100),
    "stream": Field("Answer with server-sent events.", "boolean"),
    "partial_images": Field(
        "Previews in a stream, one a round at most; by default none.", "integer", least=0, most=_MOST_PARTIAL
    ),
    "seed": Field("Of the first picture; by default one by chance.", "integer", least=0, most=SEEDS),
    "steps": Field("Solver steps; by default the model's.", "integer", least=1),
    "negative_prompt": Field("What guidance leads away from.", "string"),
    "guidance_scale": Field("1 or less is none.", "number", least=0, most=100),
    "mode": Field("How steps are drafted; by default auto.", "string", names=("auto", *MODES)),
    "lanes": Field("Noises predicted at once, of mode auto the most.", "integer", least=1, most=64),
    "rounds": Field("Of modes window, tolerance and the baselines.", "integer", least=1, most=1000),
    "tolerance": Field("Of modes auto and tolerance.", "number", least=0, most=1),
    "deadline_ms": Field("Within which the answer is wanted, waiting included.", "number", least=1, most=1e7),
    "timeline": Field("Tell when each lane worked.", "boolean"),
}
EDIT: Mapping[str, Field] = {
    **{name: field for name, field in GENERATION.items() if name not in ("style",)},
    "strength": Field("Share of the steps that is run.", "number", least=0.001, most=1),
    "input_fidelity": Field("Accepted, and without effect.", "string", names=("low", "high")),
}
assert not set(BASELINES) - set(MODES)


def fields_of(table: Mapping[str, Field], limits: Limits) -> dict[str, Field]:
    """The table with the service's own limits."""
    most = {
        "prompt": limits.prompt_chars,
        "negative_prompt": limits.prompt_chars,
        "n": limits.images,
        "steps": limits.steps,
    }
    return {
        name: Field(
            field.about,
            field.kind,
            field.least,
            most.get(name, field.most),
            field.names,
            field.pattern,
            field.required,
        )
        for name, field in table.items()
    }


def checked(fields: Mapping[str, Field], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were given and are not null. Raises ApiError for the first that cannot be."""
    for name in given:
        if name not in fields:
            raise ApiError(
                400, f"unknown parameter {_shown(name)}{did_you_mean(name[:100], fields)}",
                "unknown_parameter", param=name[:100],
            )  # fmt: skip
    for name, field in fields.items():
        if field.required and given.get(name) is None:
            raise ApiError(400, f"{name} is missing", "missing_required_parameter", param=name)
    return {name: fields[name].check(name, value) for name, value in given.items() if value is not None}
