"""A package is one file: the same folder gives the same bytes, and nothing else reads as one."""

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.task_package.archive import PackageError, load_package, pack, read_package, unpack

FILES = {"task.toml": 'name = "mine"\n', "task.py": "def model(options): ...\n"}


def folder(tmp_path: Path, **more: str) -> Path:
    place = tmp_path / "mine"
    place.mkdir()
    for name, text in (FILES | more).items():
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return place


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    place = folder(tmp_path, **{"words/list.txt": "a b"})
    first = pack(place)
    for path in place.rglob("*"):
        path.touch()
    (place / "task.py").chmod(0o600)
    again = pack(place)
    assert first.content == again.content
    assert first.code == again.code and first.code.startswith("sha256:")
    assert list(unpack(first.content).files) == ["task.py", "task.toml", "words/list.txt"]


def test_hidden_files_and_caches_are_left_out_and_links_are_refused(tmp_path: Path) -> None:
    place = folder(tmp_path, **{".git/config": "x", "__pycache__/task.pyc": "x"})
    assert set(pack(place).files) == set(FILES)
    (place / "link.txt").symlink_to("/etc/hostname")
    with pytest.raises(PackageError, match="got a link"):
        pack(place)


@pytest.mark.parametrize("name", ["weights.pt", "a.pkl", "b.pickle", "helper.py", "c.bin"])
def test_formats_that_carry_code_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PackageError, match=name):
        pack(folder(tmp_path, **{name: "x"}))


def test_a_pickle_under_another_name_is_refused(tmp_path: Path) -> None:
    import pickle

    place = folder(tmp_path)
    (place / "words.txt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(PackageError, match="carries no code"):
        pack(place)


@pytest.mark.parametrize("missing", ["task.py", "task.toml"])
def test_manifest_and_source_must_be_there(tmp_path: Path, missing: str) -> None:
    place = folder(tmp_path)
    (place / missing).unlink()
    with pytest.raises(PackageError, match=missing):
        pack(place)


@given(st.data())
def test_one_changed_byte_is_another_package_or_none(data: st.DataObject) -> None:
    content = _packed()
    at = data.draw(st.integers(0, len(content) - 1))
    change = data.draw(st.integers(1, 255))
    changed = bytearray(content)
    changed[at] ^= change
    try:
        found = unpack(bytes(changed))
    except PackageError:
        return
    assert found.digest != unpack(content).digest


def _packed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(FILES):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr, entry.create_system = 0o100644 << 16, 3
            archive.writestr(entry, FILES[name])
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"x" * 1000, _packed() + b"\0", _packed()[:-1]],
    ids=["empty", "stub", "noise", "longer", "shorter"],
)
def test_what_pack_did_not_write_is_no_package(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PackageError):
        unpack(content)
    file = tmp_path / "a.tacit-task"
    file.write_bytes(content)
    with pytest.raises(PackageError, match=r"a\.tacit-task: must be"):
        read_package(file)


def test_a_packed_file_and_its_folder_are_the_same_package(tmp_path: Path) -> None:
    place = folder(tmp_path)
    file = tmp_path / "mine.tacit-task"
    file.write_bytes(pack(place).content)
    assert load_package(file).code == load_package(place).code
    assert unpack(_packed()).code == load_package(place).code
    with pytest.raises(PackageError, match="found none"):
        load_package(tmp_path / "nowhere")
