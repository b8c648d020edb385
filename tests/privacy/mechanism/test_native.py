"""Compiled code is loaded by the descriptor that was looked at, from a folder of our own."""

import os
import shutil
from pathlib import Path

import pytest

from privacy.mechanism import native

SMALL = "int answer(void) { return NUMBER; }\n"


def small(folder: Path, number: int) -> Path:
    path = folder / f"answer{number}.c"
    path.write_text(SMALL.replace("NUMBER", str(number)))
    return path


def answer(source: Path) -> int | None:
    library = native.compiled(source)
    return None if library is None else int(library.answer())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which(os.environ.get("CC") or "cc") is None:
        pytest.skip("no C compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tacit"


def test_each_library_is_its_own_and_is_compiled_once(cache: Path, tmp_path: Path) -> None:
    sources = [small(tmp_path, number) for number in (41, 42)]
    assert [answer(source) for source in sources] == [41, 42]
    made = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert [answer(source) for source in sources] == [41, 42]
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == made
    assert len(made) == 2


@pytest.mark.parametrize("danger", ["folder others write", "file others write", "link", "folder"])
def test_what_others_may_write_or_swap_is_not_loaded(
    cache: Path, tmp_path: Path, danger: str
) -> None:
    source = small(tmp_path, 43)
    assert answer(source) == 43
    (library,) = cache.iterdir()
    if danger == "folder others write":
        cache.chmod(0o777)
    elif danger == "file others write":
        library.chmod(0o777)
    elif danger == "link":
        library.rename(tmp_path / "other.so")
        library.symlink_to(tmp_path / "other.so")
    else:
        cache.rename(tmp_path / "other")
        cache.symlink_to(tmp_path / "other")
    assert native.compiled(source) is None


def test_a_library_swapped_after_the_look_is_not_the_one_that_is_loaded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, evil = small(tmp_path, 44), small(tmp_path, 45)
    assert (answer(good), answer(evil)) == (44, 45)
    names = {path.name.split("-")[0]: path for path in cache.iterdir()}
    opened = native._open

    def swapped(name: str, folder: int) -> int:
        found = opened(name, folder)
        names["answer45"].replace(names["answer44"])
        return found

    monkeypatch.setattr(native, "_open", swapped)
    assert answer(good) == 44
