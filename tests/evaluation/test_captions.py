"""Prompts: of MS-COCO's captions in their real form, of a file, and held-out ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from driffusion_trt import InputError
from driffusion_trt.evaluation.captions import HELD_OUT, held_out, prompts_of_file, read_captions
from driffusion_trt.evaluation.heldout import prompt


def coco() -> dict[str, Any]:
    """The form of captions_val2017.json: pictures and captions in no order of their ids."""
    pictures = [397133, 37777, 252219]
    notes = [
        (252219, 9, "Last. "),
        (37777, 7, "A kitchen\n with a  stove."),
        (397133, 4, "A man in a kitchen."),
    ]
    notes += [(37777, 3, "The dining table near the kitchen. "), (252219, 800, "A person with a umbrella")]
    return {
        "info": {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "year": 2017},
        "licenses": [{"id": 4, "name": "Attribution License", "url": "…"}],
        "images": [
            {"id": one, "file_name": f"{one:012}.jpg", "height": 427, "width": 640, "license": 4}
            for one in pictures
        ],
        "annotations": [{"image_id": image, "id": id_, "caption": text} for image, id_, text in notes],
    }


def written(folder: Path, data: Any) -> str:
    path = folder / "captions_val2017.json"
    path.write_text(json.dumps(data), "utf-8")
    return str(path)


def test_the_first_caption_of_each_picture_in_the_order_of_ids(tmp_path: Path) -> None:
    prompts = read_captions(written(tmp_path, coco()))
    assert prompts.texts == ("The dining table near the kitchen.", "Last.", "A man in a kitchen.")
    assert prompts.source == "captions_val2017.json"
    assert not prompts.held_out
    few = read_captions(str(tmp_path / "captions_val2017.json"), 2)
    assert few.texts == prompts.texts[:2]
    assert few.digest == prompts.digest, "how many are used does not say which they are"


def test_other_captions_have_another_digest(tmp_path: Path) -> None:
    before = read_captions(written(tmp_path, coco())).digest
    data = coco()
    data["annotations"][0]["caption"] = "Lost."
    assert read_captions(written(tmp_path, data)).digest != before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "is no file of captions"),
        ({"images": [{"id": 1}]}, "KeyError.'annotations'"),
        ({"images": [], "annotations": []}, "has no pictures"),
        ({"images": [{"id": 1}], "annotations": []}, "1 pictures without a caption, such as 1"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "id": 2}]}, "KeyError.'caption'"),
        ({"images": [{"id": float("inf")}], "annotations": []}, "OverflowError"),
        (
            {"images": [{"id": 1}], "annotations": [{"image_id": 1, "id": 2, "caption": " \n"}]},
            "has 1 empty captions, such as that with the id 2",
        ),
    ],
)
def test_other_files_are_refused_with_the_form_they_should_have(
    tmp_path: Path, data: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_captions(written(tmp_path, data))
    assert "annotations_trainval2017.zip" in str(raised.value)


def test_what_cannot_be_read_or_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match=r"deep\.json cannot be read as captions"):
        read_captions(str(tmp_path / "deep.json"))
    with pytest.raises(InputError, match="cannot be read as captions"):
        read_captions(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match=r"count=4 was asked, and captions_val2017\.json has 3"):
        read_captions(written(tmp_path, coco()), 4)
    with pytest.raises(InputError, match="count=0 was asked; it must be at least 1"):
        held_out(0)


def test_prompts_of_a_file_and_held_out_ones() -> None:
    prompts = prompts_of_file("some/prompts.txt", ["a", "b"])
    assert (prompts.source, prompts.texts) == ("prompts.txt", ("a", "b"))
    own = held_out(3)
    assert own.texts == tuple(prompt(k)[0] for k in range(3))
    assert own.held_out and own.source == HELD_OUT
    assert held_out(12).digest == own.digest
    assert not prompts_of_file(f"some/{HELD_OUT}", ["a"]).held_out, "a name says nothing"
