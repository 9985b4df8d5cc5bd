"""Bodies that are nearly requests, JSON and forms, made and damaged by chance; over kept connections."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from typing import Any

from PIL import Image

CONNECTIONS = 4
_PATHS = ("/v1/images/generations", "/v1/images/edits")
_FIELDS = (
    "prompt", "negative_prompt", "model", "n", "size", "user", "response_format", "output_format", "quality",
    "output_compression", "stream", "partial_images", "background", "moderation", "style", "seed", "steps",
    "guidance_scale", "mode", "lanes", "rounds", "tolerance", "strength", "deadline_ms", "timeline", "image",
    "mask", "stray", "__proto__", "", "prompt\0",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, 1e308, -1e308, 5e-324, 10**30, 2**63, float("nan"), float("inf"),
    "", "a red fox", "\0", "\ud800", "é\u200b\u202e", "x" * 5000, "64x64", "16x16", "99999x1", "0x0", "auto",
    "url", "b64_json", "webp", "jpeg", "sequential", "aggressive", "tolerance", "exact", "fast", "1",
    "1_000", "nan", [], {}, [[]], {"a": 1}, ["a"] * 1000, "'; --", "../../etc/passwd", "${jndi:ldap://x}",
    "<script>",
)  # fmt: skip
_LIKELY: dict[str, tuple[Any, ...]] = {
    "n": (1, 2), "size": ("64x64", "auto"), "response_format": ("url", "b64_json"), "seed": (0, 7, 2**32),
    "output_format": ("png", "jpeg", "webp"), "quality": ("fast", "exact", "medium"), "stream": (True, False),
    "partial_images": (0, 2), "mode": ("sequential", "aggressive", "auto"), "lanes": (1, 2),
    "timeline": (True,), "guidance_scale": (1, 3.0), "deadline_ms": (1, 60_000),
    "negative_prompt": ("blue",), "user": ("me",),
}  # fmt: skip
_DEPTHS = (10, 300, 900, 960, 983, 990, 1000, 1100, 20_000)


def body(chance: random.Random) -> tuple[str, bytes]:
    """Content type and body."""
    names = _FIELDS if chance.random() < 0.4 else tuple(_LIKELY)
    fields = {name: _value(chance, name) for name in chance.sample(names, chance.randrange(6))}
    if chance.random() < 0.8:
        fields["prompt"] = chance.choice(["a fox", "a red star", "a fox", ""])
    fields.setdefault("steps", 2)
    kind, data = _form(chance, fields) if chance.random() < 0.35 else _json(chance, fields)
    for _ in range(chance.choice([0, 0, 0, 1, 3, 10])):
        data = _damaged(chance, data)
    if chance.random() < 0.1:
        kind = chance.choice(
            ["text/plain", "", "application/json; charset=utf-16", "multipart/form-data", "\xff"]
        )
    return kind, data


def _value(chance: random.Random, name: str) -> Any:
    return chance.choice(_LIKELY[name] if name in _LIKELY and chance.random() < 0.85 else _VALUES)


def _json(chance: random.Random, fields: dict[str, Any]) -> tuple[str, bytes]:
    odd = chance.random()
    if odd < 0.03:
        depth = chance.choice(_DEPTHS)
        opening, closing = chance.choice([("[", "]"), ('{"a":', "}")])
        value = opening * depth + "1" + closing * depth
        return "application/json", f'{{"prompt": {value}}}'.encode()
    data = json.dumps(fields).encode()
    if odd < 0.06:
        data = data[:-1] + b"," + data[1:]  # every name twice
    elif odd < 0.08:
        data = data.decode().encode(chance.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7"]))
    elif odd < 0.1:
        data = chance.choice([b"", b"[]", b"null", b"1", b'"a"', b" " * 70_000, b"9" * 5000, data + data])
    return "application/json", data


def _form(chance: random.Random, fields: dict[str, Any]) -> tuple[str, bytes]:
    edge = chance.choice(["edge", "e" * 70, "e", "-" * 30])
    parts = []
    for name, value in fields.items():
        text = str(value).encode("utf-8", "surrogatepass")
        parts.append(f'Content-Disposition: form-data; name="{name}"'.encode() + b"\r\n\r\n" + text)
    for name in chance.sample(["image", "image[]", "mask", "x"], chance.randrange(3)):
        file = chance.choice(["a.png", "../a", ""])
        head = f'Content-Disposition: form-data; name="{name}"; filename="{file}"'
        parts.append(head.encode() + b"\r\nContent-Type: image/png\r\n\r\n" + _picture(chance))
    chance.shuffle(parts)
    line = chance.choice([b"\r\n"] * 9 + [b"\n"])
    data = b"".join(b"--" + edge.encode() + line + part + line for part in parts)
    end = b"--" + edge.encode() + b"--" + line if chance.random() < 0.9 else b""
    return f"multipart/form-data; boundary={edge}", data + end


def _picture(chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(200))
    mode, size = (
        chance.choice(["L", "RGB", "RGBA", "P", "1"]),
        (chance.choice([1, 64]), chance.choice([1, 64])),
    )
    file = io.BytesIO()
    Image.new(mode, size).save(file, chance.choice(["PNG", "PNG", "GIF", "TIFF"]))
    return file.getvalue()


def _damaged(chance: random.Random, data: bytes) -> bytes:
    """Bytes left out, added or changed; or the end cut off."""
    at = chance.randrange(len(data) + 1)
    if chance.random() < 0.1:
        return data[:at]
    return data[:at] + chance.randbytes(chance.randrange(4)) + data[at + chance.randrange(3) :]


def run(port: int, count: int, seed: int) -> dict[str, Any]:
    """Send so many. `statuses` counts answers; `bad` has those that are no answer, or a 5xx.

    Body k of connection c is the k-th of random.Random(seed * 1000 + c).
    """
    shares = [count // CONNECTIONS + (c < count % CONNECTIONS) for c in range(CONNECTIONS)]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        found = list(pool.map(lambda c: _over_one(port, shares[c], 1000 * seed + c), range(CONNECTIONS)))
    statuses = sum((one for one, _ in found), Counter[str]())
    return {
        "seed": seed,
        "bodies": count,
        "statuses": dict(statuses),
        "bad": [b for _, some in found for b in some],
    }


def _over_one(port: int, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    chance, statuses, bad = random.Random(seed), Counter[str](), list[str]()
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    for number in range(count):
        kind, data = body(chance)
        path = _PATHS[(kind.startswith("multipart")) ^ (chance.random() < 0.1)]
        try:
            connection.request("POST", path, data, {"Content-Type": kind})
            response = connection.getresponse()
            text = response.read()
        except (HTTPException, OSError) as error:
            statuses["none"] += 1
            bad.append(f"seed {seed}, body {number}: {type(error).__name__}: {error}")
            connection.close()
            continue
        statuses[str(response.status)] += 1
        if response.status >= 500 or (response.status != 200 and not _is_error(text)):
            bad.append(f"seed {seed}, body {number}: {response.status} {text[:200]!r}")
    connection.close()
    return statuses, bad


def _is_error(text: bytes) -> bool:
    """Whether it is an error in the form of OpenAI's API."""
    try:
        return bool(json.loads(text)["error"]["message"])
    except (KeyError, TypeError, ValueError):
        return False
