"""The service as others see it: OpenAI's own client, schemathesis on the schema, bodies made by chance."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpd import Service, multipart, serving
from PIL import Image

from driffusion_trt import Pipeline
from driffusion_trt._errors import QueueFullError
from driffusion_trt.server.limits import Limits

openai = pytest.importorskip("openai", reason="it is in the extra `test`")
pytest.importorskip("schemathesis", reason="it is in the extra `test`")


pytestmark = pytest.mark.filterwarnings("ignore::driffusion_trt.pipeline.PromptWarning")


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=1) as found:
        yield found


# OpenAI's client, unchanged


def test_openai_makes_pictures(client: Any) -> None:
    found = client.images.generate(
        model="tiny", prompt="a red fox", n=2, size="64x64", response_format="b64_json", user="me",
        quality="auto", extra_body={"seed": 7, "steps": 4, "negative_prompt": "blue", "guidance_scale": 2.0,
                                    "mode": "aggressive", "deadline_ms": 60_000},
    )  # fmt: skip
    assert [picture(one.b64_json).size for one in found.data] == [(64, 64)] * 2
    assert [one.seed for one in found.data] == [7, 8] and found.created > 1_700_000_000
    assert (found.size, found.output_format, found.details["mode"]) == ("64x64", "png", "aggressive")


def test_openai_follows_links(client: Any, service: Service) -> None:
    found = client.images.generate(prompt="a fox", response_format="url", extra_body={"steps": 3})
    path = found.data[0].url.removeprefix(service.url)
    assert Image.open(io.BytesIO(service.call("GET", path).body)).size == (64, 64)


def test_openai_streams(client: Any) -> None:
    from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent

    with client.images.generate(
        prompt="a fox", stream=True, partial_images=3, extra_body={"steps": 8, "mode": "sequential"}
    ) as stream:
        *partial, completed = list(stream)
    assert [type(event) for event in partial] == [ImageGenPartialImageEvent] * 3
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert isinstance(completed, ImageGenCompletedEvent)
    assert picture(completed.b64_json).size == (64, 64) and completed.usage.total_tokens == 0


def test_openai_edits(client: Any, service: Service) -> None:
    image, mask = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(image, "PNG")
    Image.new("RGBA", (64, 64)).save(mask, "PNG")
    files = {
        "image": ("a.png", image.getvalue(), "image/png"),
        "mask": ("m.png", mask.getvalue(), "image/png"),
    }
    found = client.images.edit(
        model="tiny", prompt="a fox", n=1, size="64x64", extra_body={"steps": 4, "strength": 0.5}, **files
    )
    assert picture(found.data[0].b64_json).size == (64, 64)
    asked = service.engine.asked[-1]
    assert asked["strength"] == 0.5 and asked["mask_image"].getextrema() == (255, 255)
    with client.images.edit(
        prompt="a fox", image=[files["image"]], stream=True, partial_images=1, extra_body={"steps": 4}
    ) as stream:
        kinds = [event.type for event in stream]
    assert kinds == ["image_edit.partial_image", "image_edit.completed"]


def test_openai_lists_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "driffusion-trt"


def test_openai_says_what_went_wrong(client: Any, service: Service) -> None:
    with pytest.raises(openai.BadRequestError, match="steps must be from 1 to 200") as refused:
        client.images.generate(prompt="a fox", extra_body={"steps": 0})
    assert (refused.value.param, refused.value.code) == ("steps", "invalid_value")
    assert refused.value.request_id
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.images.generate(prompt="a fox", model="dall-e-3")
    service.engine.refuse = QueueFullError("full", 0.01)
    before = len(service.engine.asked)
    with pytest.raises(openai.RateLimitError, match="full"):
        client.images.generate(prompt="a fox")
    assert len(service.engine.asked) == before + 2, "it comes again once, when it was told to"


# The schema


@pytest.fixture(scope="module")
def bounded(pipe: Pipeline) -> Iterator[Service]:
    with serving(pipe, limits=Limits(pixels=4 * 64 * 64, steps=4, images=2, body_s=2.0)) as found:
        yield found


@pytest.mark.parametrize(
    "words",
    [
        ("--exclude-path=/v1/images/edits", "--phases=coverage,fuzzing,stateful"),
        # Its fuzzing of forms ends with an error of its own (4.32); the bodies by chance below have forms.
        pytest.param(("--include-path=/v1/images/edits", "--phases=coverage"), marks=pytest.mark.slow),
    ],
    ids=["all but forms", "forms"],
)
def test_schemathesis_finds_nothing(bounded: Service, tmp_path: Path, words: tuple[str, ...]) -> None:
    """All of its checks but one, no 5xx among them: which fields go together no schema says."""
    words += ("--max-examples=10", "--generation-deterministic", "--no-color")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{bounded.url}/openapi.json", *words),
            "--exclude-checks=positive_data_acceptance",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert tested and int(tested[1]) == int(tested[2]) > 100


# Bodies by chance

_WORDS: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3.5, 1e308, -1e308, 10**30, "", "a red fox", "\0", "é\u200b", "x" * 5000,
    "64x64", "16x16", "auto", "url", "b64_json", "sequential", "aggressive", "exact", "tiny", [], {}, [[]],
    {"a": 1}, "99999x1", "\u202e", "'; --", "../../etc/passwd",
]  # fmt: skip


def odd_body(chance: random.Random) -> tuple[str, bytes]:
    """A body that is nearly one, with its content type."""
    from driffusion_trt.server.fields import EDIT

    fields = {name: chance.choice(_WORDS) for name in chance.sample([*EDIT, "stray"], chance.randrange(8))}
    if chance.random() < 0.7:
        fields["prompt"] = chance.choice(["a fox", "a red star", ""])
    kind = "application/json"
    if chance.random() < 0.3:
        files = {
            name: chance.randbytes(chance.randrange(200)) for name in chance.sample(["image", "mask", "x"], 2)
        }
        kind, body = multipart(fields, files)
    else:
        body = json.dumps(fields).encode()
    for _ in range(chance.choice([0, 0, 1, 3])):  # damage
        at = chance.randrange(len(body) + 1)
        body = body[:at] + chance.randbytes(chance.randrange(4)) + body[at + chance.randrange(3) :]
    return chance.choice([kind] * 8 + ["text/plain", ""]), body


def fuzzed(service: Service, count: int, seed: int) -> dict[int, int]:
    chance, statuses = random.Random(seed), dict[int, int]()
    for number in range(count):
        kind, body = odd_body(chance)
        path = chance.choice(["/v1/images/generations", "/v1/images/edits"])
        answer = service.call("POST", path, body, content_type=kind)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        assert answer.status in (200, 400, 404, 413, 415, 422), (number, kind, body, answer)
        if answer.status != 200:
            assert answer.json["error"]["message"]
    return statuses


def test_bodies_by_chance_do_no_harm(bounded: Service) -> None:
    statuses = fuzzed(bounded, 400, seed=1)
    assert statuses[200] and statuses[400] and statuses[415]
    assert bounded.generate().status == 200


@pytest.mark.slow
def test_ten_thousand_bodies_by_chance_do_no_harm(bounded: Service) -> None:
    statuses = fuzzed(bounded, 10_000, seed=2)
    assert sum(statuses.values()) == 10_000
    assert bounded.generate().status == 200 and not bounded.engine.under_way
