"""Folders that tests share: made once, whole or not at all, and nobody changes them unseen."""

from __future__ import annotations

from pathlib import Path

import pytest
from shared import Shared


def write(folder: Path) -> None:
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("one")


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.TempPathFactory:
    """That of a process without others."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    return pytest.TempPathFactory(tmp_path / "base", 3, "all", lambda *_, **__: None, _ispytest=True)


def test_a_folder_is_made_by_who_asks_first(factory: pytest.TempPathFactory) -> None:
    first, other = Shared(factory), Shared(factory)  # as two processes have them
    folder = first("name", write)
    assert (folder / "deep" / "file").read_text() == "one"
    assert other("name", lambda _: pytest.fail("it was there")) == first("name", write) == folder
    assert first.changed() == other.changed() == []


def test_what_came_to_no_end_is_made_again(factory: pytest.TempPathFactory) -> None:
    def stop(folder: Path) -> None:
        write(folder)
        (folder / "half").write_text("made")
        raise KeyboardInterrupt

    shared = Shared(factory)
    with pytest.raises(KeyboardInterrupt):
        shared("name", stop)
    assert [path.name for path in shared("name", write).iterdir()] == ["deep"]


def test_a_change_is_told(factory: pytest.TempPathFactory) -> None:
    shared = Shared(factory)
    folder = shared("name", write)
    (folder / "deep" / "file").write_text("two, and longer")
    (folder / "new").touch()
    assert shared.changed() == ["name/deep/file", "name/new"]
