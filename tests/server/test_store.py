"""Pictures behind links: bounds, an end, and a disk that is full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from httpd import nearly_full, stored

from driffusion_trt._errors import InputError
from driffusion_trt.server.answers import ApiError
from driffusion_trt.server.store import Store


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["memory", "folder"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path if request.param == "folder" else None


def files(folder: Path | None) -> list[str]:
    return [] if folder is None else sorted(os.listdir(folder))


def test_what_was_put_is_there_under_a_name_of_its_own(folder: Path | None) -> None:
    store = Store(100, 60, folder)
    one, other = store.put([b"one", b"other"], "png")
    assert one != other and len(one) == 32
    assert stored(store, one) == (b"one", "image/png") and stored(store, other) == (b"other", "image/png")
    assert store.size_bytes == 8
    assert len(files(folder)) == (0 if folder is None else 2)


@pytest.mark.parametrize("name", ["", "0" * 32, "../../etc/passwd", "driffusion-x.png"])
def test_other_names_lead_nowhere(folder: Path | None, name: str) -> None:
    store = Store(100, 60, folder)
    store.put([b"one"], "png")
    assert stored(store, name) is None


def test_they_are_gone_after_their_time(folder: Path | None) -> None:
    clock = Clock()
    store = Store(100, 60, folder, clock)
    (name,) = store.put([b"one"], "png")
    clock.now += 59
    assert stored(store, name)
    clock.now += 1
    assert stored(store, name) is None
    assert store.size_bytes == 0 and files(folder) == []


def test_the_oldest_make_room(folder: Path | None) -> None:
    store = Store(10, 60, folder)
    first, second = (store.put([b"12345"], "png")[0] for _ in range(2))
    third = store.put([b"1"], "webp")[0]
    assert stored(store, first) is None and stored(store, second)
    assert stored(store, third) == (b"1", "image/webp")
    assert store.size_bytes == 6 and len(store) == 2


def test_more_than_there_can_be_room_for_is_refused(folder: Path | None) -> None:
    store = Store(10, 60, folder)
    (kept,) = store.put([b"1"], "png")
    with pytest.raises(ApiError, match="up to 11 bytes do not fit in the 10") as refused:
        store.put([b"123456", b"12345"], "png")
    assert refused.value.status == 507
    assert stored(store, kept)


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    store = Store(1 << 20, 60, tmp_path)
    (kept,) = store.put([b"kept"], "png")
    before = files(tmp_path)
    with (
        nearly_full(1000),
        pytest.raises(ApiError, match="disk that pictures are kept on is full") as refused,
    ):
        store.put([b"small", b"x" * 2000], "png")
    assert (refused.value.status, refused.value.code) == (507, "disk_full")
    assert files(tmp_path) == before, "of several pictures none is left"
    assert stored(store, kept) == (b"kept", "image/png") and store.size_bytes == 4
    assert store.put([b"x" * 2000], "png"), "and goes on when there is room"


def test_another_process_finds_the_pictures_and_tidies_up(tmp_path: Path) -> None:
    (name,) = Store(100, 60, tmp_path).put([b"one"], "jpeg")
    (tmp_path / ".driffusion-1.png.partial").write_bytes(b"half")
    os.utime(tmp_path / ".driffusion-1.png.partial", (1, 1))
    (tmp_path / "of-somebody-else.png").write_bytes(b"else")
    store = Store(100, 60, tmp_path)
    assert stored(store, name) == (b"one", "image/jpeg")
    assert files(tmp_path) == sorted([f"driffusion-{name}.jpeg", "of-somebody-else.png"])
    assert stored(store, "of-somebody-else") is None


def test_old_pictures_of_another_process_go(tmp_path: Path) -> None:
    (name,) = Store(100, 60, tmp_path).put([b"one"], "png")
    path = tmp_path / f"driffusion-{name}.png"
    os.utime(path, (1, 1))
    assert Store(100, 60, tmp_path).get(name) is None
    assert not path.exists()


def test_a_file_that_somebody_took_away_is_no_failure(tmp_path: Path) -> None:
    store = Store(100, 60, tmp_path)
    (name,) = store.put([b"one"], "png")
    (tmp_path / f"driffusion-{name}.png").unlink()
    assert stored(store, name) is None and store.size_bytes == 0


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pictures cannot be kept in .*missing"):
        Store(100, 60, tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="give --output-dir a folder"):
        Store(100, 60, tmp_path / "file")


def test_a_picture_is_for_nobody_else_on_this_machine(tmp_path: Path) -> None:
    (name,) = Store(100, 60, tmp_path).put([b"one"], "png")
    assert (tmp_path / f"driffusion-{name}.png").stat().st_mode & 0o777 == 0o600


def test_a_file_that_another_process_writes_at_the_moment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".driffusion-1.png.partial").write_bytes(b"half")
    Store(100, 60, tmp_path)
    assert files(tmp_path) == [".driffusion-1.png.partial"]


def test_how_long_a_picture_is_kept_on_is_told(folder: Path | None) -> None:
    clock = Clock()
    store = Store(100, 60, folder, clock)
    (name,) = store.put([b"one"], "png")
    clock.now += 45
    found = store.get(name)
    assert found is not None and found.left_s == 15
    found.file.close()


def test_what_may_not_fit_is_refused_before_it_is_made(folder: Path | None) -> None:
    store = Store(10, 60, folder)
    store.check(10)
    with pytest.raises(ApiError, match="response_format b64_json") as refused:
        store.check(11)
    assert (refused.value.status, refused.value.code) == (507, "store_full")
