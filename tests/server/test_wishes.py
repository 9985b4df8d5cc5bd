"""Fields of requests: what is taken, what is refused, and that the schema says the same."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request

from driffusion_trt._errors import InputError
from driffusion_trt.models import get_spec
from driffusion_trt.planning.choice import QUALITIES as OURS
from driffusion_trt.server.answers import ApiError
from driffusion_trt.server.fields import EDIT, GENERATION, QUALITIES, SEEDS, fields_of
from driffusion_trt.server.images import _client
from driffusion_trt.server.limits import Limits
from driffusion_trt.server.openapi import document
from driffusion_trt.server.wishes import Wish, check_size

LIMITS = Limits(prompt_chars=20, images=3, pixels=64 * 64 * 2, steps=50)


def wish(**given: Any) -> Wish:
    fields = fields_of(GENERATION, LIMITS)
    return Wish.check(
        get_spec("demo"), (64, 64), ("demo", "fox"), LIMITS, fields, {"prompt": "a fox", **given}
    )


def test_a_prompt_is_enough() -> None:
    found = wish()
    assert (found.prompt, found.count, found.link, found.stream) == ("a fox", 1, False, False)
    assert found.settings == {"seed": [found.seed], "num_images": 1}
    assert wish().seed != found.seed, "nobody gets the same picture by default"


def test_the_pictures_of_a_request_have_seeds_that_follow_one_another() -> None:
    assert wish(n=2, seed=7).settings["seed"] == [7, 8]
    assert wish(seed=SEEDS).settings["seed"] == [SEEDS]


def test_fields_become_settings_of_the_pipeline() -> None:
    given = {"steps": 9, "mode": "window", "guidance_scale": 2, "negative_prompt": "blue", "rounds": 4}
    found = wish(**given, size="32x64", user="me", deadline_ms=50)
    assert {name: found.settings[name] for name in given} == given
    assert (found.settings["width"], found.settings["height"]) == (32, 64)
    assert (found.user, found.deadline_ms) == ("me", 50)
    assert "deadline_ms" not in found.settings and "user" not in found.settings


def test_null_is_as_if_it_were_left_out() -> None:
    assert wish(steps=None, size=None, n=None, seed=3).settings == {"seed": [3], "num_images": 1}


@pytest.mark.parametrize(("name", "ours"), QUALITIES.items())
def test_openai_names_of_qualities_are_ours(name: str, ours: str | None) -> None:
    assert wish(quality=name).settings.get("quality") == ours
    assert ours is None or ours in OURS


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({"prompt": None}, "missing_required_parameter", "prompt is missing"),
        ({"prompt": ""}, "string_too_short", "prompt is empty"),
        ({"prompt": "x" * 21}, "string_too_long", "prompt has 21 characters; the most is 20"),
        ({"prompt": 5}, "invalid_type", "prompt must be a string, not 5"),
        ({"prompt": "\ud800"}, "invalid_value", "not valid Unicode"),
        ({"negative_prompt": "x" * 21}, "string_too_long", "negative_prompt has 21"),
        ({"n": 0}, "invalid_value", "n must be from 1 to 3, not 0"),
        ({"n": 4}, "invalid_value", "n must be from 1 to 3, not 4"),
        ({"n": True}, "invalid_type", "n must be an integer, not True"),
        ({"n": 1.5}, "invalid_type", "n must be an integer, not 1.5"),
        ({"steps": 51}, "invalid_value", "steps must be from 1 to 50"),
        ({"steps": 10**400}, "invalid_value", "..."),
        ({"seed": -1}, "invalid_value", "seed must be from 0"),
        ({"seed": SEEDS + 1}, "invalid_value", "seed must be from 0"),
        ({"guidance_scale": float("inf")}, "invalid_value", "guidance_scale must be from 0 to 100, not inf"),
        ({"guidance_scale": float("nan")}, "invalid_value", "not nan"),
        ({"guidance_scale": "3"}, "invalid_type", "guidance_scale must be a number, not '3'"),
        ({"stream": 1}, "invalid_type", "stream must be a boolean"),
        ({"mode": "agressive"}, "invalid_value", "did you mean 'aggressive'?"),
        ({"size": "64"}, "invalid_value", "size cannot be '64'"),
        ({"size": "0x64"}, "invalid_value", "size cannot be"),
        ({"size": "64x64\n"}, "invalid_value", "size cannot be"),
        ({"size": "640x640"}, "too_many_pixels", "1 x 640 x 640 pixels"),
        ({"n": 3}, "too_many_pixels", "3 x 64 x 64 pixels"),
        ({"model": "other"}, "model_not_found", "'other' is not served here; there is 'demo'"),
        ({"propmt": "a"}, "unknown_parameter", "did you mean 'prompt'?"),
        ({"strength": 0.5}, "unknown_parameter", "unknown parameter 'strength'"),
        ({"prompt": [[["a"]]]}, "invalid_type", "must be a string, not a list"),
        ({"n": {"a": [1]}}, "invalid_type", "must be an integer, not an object"),
        ({"background": "transparent"}, "invalid_value", "background cannot be"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(given: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(ApiError) as refused:
        wish(**given)
    assert refused.value.code == code and said in str(refused.value)
    assert refused.value.status == (404 if code == "model_not_found" else 400)
    assert len(str(refused.value)) < 400, "what was sent is not sent back whole"
    assert refused.value.param == ("size" if code == "too_many_pixels" else next(iter(given)))


@pytest.mark.parametrize(("kind", "most"), [("webp", 16_383), ("jpeg", 65_500), ("png", 99_999)])
def test_a_side_is_no_longer_than_such_a_file_can_have(kind: str, most: int) -> None:
    limits = Limits(pixels=8 << 20)
    check_size(limits, most, 16, 1, kind)
    if kind != "png":
        with pytest.raises(ApiError, match=f"a {kind} has at most {most} pixels a side") as refused:
            check_size(limits, 16, most + 1, 1, kind)
        assert refused.value.param == "output_format"


def test_a_size_that_the_model_cannot_have_is_refused() -> None:
    with pytest.raises(InputError, match="multiple of 16"):
        wish(size="64x65")


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_limits_are_positive(value: str) -> None:
    with pytest.raises(InputError, match="images must be a positive number"):
        Limits(images=float(value))  # type: ignore[arg-type]


def test_texts_of_a_form_are_read_as_what_they_stand_for() -> None:
    fields = fields_of(EDIT, LIMITS)
    assert fields["n"].read("n", "2") == 2
    assert fields["strength"].read("strength", "0.5") == 0.5
    assert fields["stream"].read("stream", "True") is True
    assert fields["prompt"].read("prompt", "5") == "5"
    assert fields["n"].read("n", "-2") == -2 and fields["n"].read("n", "2.0") == 2.0
    odd = ("two", "9" * 5000, "7" + " " * 39 + "8", "1_0", " 7", "", "0x1", "\u0661", "nan", "1e")
    for name, text in (*(("n", text) for text in odd), ("strength", ""), ("strength", "inf")):
        with pytest.raises(ApiError):
            fields[name].check(name, fields[name].read(name, text))


def test_the_schema_is_made_of_the_same_table() -> None:
    schema = document(LIMITS, keyed=False)["paths"]["/v1/images/generations"]["post"]["requestBody"]
    properties = schema["content"]["application/json"]["schema"]["properties"]
    assert set(properties) == set(GENERATION)
    assert properties["n"]["maximum"] == 3 and properties["prompt"]["maxLength"] == 20
    assert properties["steps"]["maximum"] == 50


def test_the_most_pixels_are_of_the_model() -> None:
    assert Limits().of_model(64, 64).pixels == 8 * 64 * 64
    assert Limits(images=1).of_model(64, 64).pixels == 4 * 64 * 64
    assert Limits().of_model(1024, 1024).pixels == 8 << 20
    assert Limits(pixels=5).of_model(64, 64).pixels == 5


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%1", "fe80::2%2", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("testclient", "unknown", False),
    ],
)
def test_who_takes_turns_by_address(one: str, other: str, same: bool) -> None:
    """A site has all addresses of its /64 of IPv6."""

    def client(host: str) -> str:
        return _client(Request({"type": "http", "client": (host, 1)}), "me")[0]

    assert (client(one) == client(other)) is same
