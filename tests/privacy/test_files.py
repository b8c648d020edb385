"""Writers leave the old file or the new one; readers refuse in one line what is beyond bounds."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from privacy.files import (
    PRIVATE,
    DocumentError,
    FileError,
    Limits,
    canonical_json,
    naming,
    open_atomic,
    parse_json,
    parse_toml,
    read_bounded,
    read_json,
    read_toml,
    remove_stale,
    write_atomic,
)

ROOT = Path(__file__).resolve().parents[2]
SMALL = Limits(size=4000, depth=4, digits=8, length=40, count=60)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"one")
    write_atomic(path, (part for part in (b"tw", memoryview(b"o"))))
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == {"file"}


def test_a_private_file_is_its_owners_and_any_other_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"key", mode=PRIVATE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_atomic(path, b"key, again")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    write_atomic(path, b"policy")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o666)
    write_atomic(path, b"key", mode=PRIVATE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_replaced_and_never_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"of somebody else")
    path = tmp_path / "file"
    path.symlink_to(other)
    write_atomic(path, b"mine")
    assert other.read_bytes() == b"of somebody else"
    assert not path.is_symlink()
    assert path.read_bytes() == b"mine"


def test_a_temporary_name_cannot_be_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = os.open

    def watched(path: str, flags: int, *args: int, **more: int) -> int:
        if flags & os.O_CREAT:
            seen.append(str(path))
            assert flags & os.O_EXCL
            assert flags & os.O_NOFOLLOW
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", watched)
    for _ in range(20):
        write_atomic(tmp_path / "file", b"x")
    assert len(set(seen)) == 20
    assert all(len(name) >= 32 for name in seen)


def test_the_file_is_on_the_disk_before_its_name_and_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        calls.append("folder" if folder else f"file of {os.fstat(descriptor).st_size}")
        sync(descriptor)

    def renamed(*args: str, **more: int) -> None:
        calls.append("rename")
        rename(*args, **more)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    write_atomic(tmp_path / "file", b"four")
    assert calls == ["file of 4", "rename", "folder"]
    calls.clear()
    write_atomic(tmp_path / "file", b"four", durable=False)
    assert calls == ["rename"]


@pytest.mark.parametrize("broken", ["fsync", "rename", "fstat"])
def test_whatever_fails_the_old_file_stands_and_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, broken, full)
    with pytest.raises(FileError, match=r"file: cannot be written \(No space left on device\)"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"file"}


def test_a_disk_that_fills_up_leaves_the_old_file_and_the_error_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(FileError, match=r"file: cannot be written \(File too large\)"):
            write_atomic(path, bytes(1 << 20))
        resource.setrlimit(resource.RLIMIT_FSIZE, (3, limits[1]))
        with pytest.raises(FileError, match=r"file: cannot be written \(File too large\)"):
            write_atomic(path, b"less than a buffer")
        error = pytest.raises(FileError, match=r"file: cannot be written \(File too large\)")
        with error, naming(path), path.open("ab", buffering=0) as file:
            file.write(b"a line that does not fit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"file"}
    with pytest.raises(FileError, match="No such file"):
        write_atomic(tmp_path / "missing" / "file", b"")


def test_a_block_that_raises_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_atomic(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyError
    assert names(tmp_path) == set()


WRITER = """
import sys
from pathlib import Path
from privacy.files import write_atomic
path = Path(sys.argv[1])
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    write_atomic(path, [bytes([65 + turn % 26]) * 4096] * 16)
"""


def test_killed_at_any_moment_the_file_is_whole_and_the_next_start_clears_up(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"A" * 65536)
    stale = 0
    for turn in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        first = path.read_bytes()
        while turn and path.read_bytes() == first:
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        content = path.read_bytes()
        assert len(content) == 65536
        assert len(set(content)) == 1
        stale += remove_stale(tmp_path)
        assert names(tmp_path) == {"file"}
    assert stale <= 6


def test_what_is_being_written_is_not_stale(tmp_path: Path) -> None:
    (tmp_path / f".tacit-{'0' * 32}.tmp").write_bytes(b"left by a kill")
    (tmp_path / ".sites.json.4711.part").write_bytes(b"left by a kill of 0.1.0")
    (tmp_path / ".000001.safetensors.4711.tmp").write_bytes(b"left by a kill of 0.1.0")
    for kept in (".hidden.tmp", "file.12.part", ".tacit-short.tmp"):
        (tmp_path / kept).write_bytes(b"of somebody else")
    with open_atomic(tmp_path / "file") as file:
        file.write(b"whole")
        assert remove_stale(tmp_path, tmp_path / "missing") == 3
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert names(tmp_path) == {"file", ".hidden.tmp", "file.12.part", ".tacit-short.tmp"}


def test_a_writer_whose_new_file_was_taken_for_stale_takes_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real, taken = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_EX and not taken:
            taken.extend(tmp_path.iterdir())
            taken[0].unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    write_atomic(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert len(taken) == 1


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**31), 10**31)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=20,
)


@given(VALUES)
def test_canonical_json_has_one_spelling_and_is_read_back(value: object) -> None:
    text = canonical_json(value)
    assert text.isascii()
    assert parse_json(text) == parse_json(text.encode()) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}])
def test_canonical_json_has_no_infinity(value: object) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ("", "must be JSON"),
        ("[" * 1900, "nested at most 4 deep"),
        ("[" * 6 + "]" * 6, "nested at most 4 deep"),
        ('{"a":' * 5 + "{}" + "}" * 5, "nested at most 4 deep"),
        ("123456789", "at most 8 digits"),
        ("-123456789", "at most 8 digits"),
        ("1" * 3000, "at most 8 digits"),
        ("1e999", "must be finite"),
        ("1." + "0" * 40, "must be finite"),
        ("NaN", "must be finite, got NaN"),
        ("[-Infinity]", "must be finite"),
        ('"' + "x" * 41 + '"', "at most 40 characters"),
        ('{"' + "x" * 41 + '": 1}', "at most 40 characters"),
        ("[" + "1," * 60 + "1]", "at most 60 values"),
        ("[1,[2," + "1," * 60 + "1]]", "at most 60 values"),
        ('{"a": 1, "a": 2}', "a key must occur once, got 'a' twice"),
        ('"\\ud800"', "half a surrogate"),
        (b'"\xff"', "UTF-8"),
        (" " * 4001, "at most 4000 bytes"),
    ],
)
def test_json_beyond_its_bounds_is_refused_in_one_line(text: str | bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=message) as error:
        parse_json(text, SMALL)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_json_at_its_bounds_is_read() -> None:
    assert parse_json("[" * 4 + "]" * 4, SMALL) == [[[[]]]]
    assert parse_json("12345678", SMALL) == 12345678
    assert parse_json('"' + "x" * 40 + '"', SMALL) == "x" * 40
    assert len(parse_json("[" + "1," * 58 + "1]", SMALL)) == 59
    assert parse_json('"\\ud83d\\ude00"', SMALL) == "\U0001f600"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a =", "must be TOML"),
        ("a = " + "[" * 1500, "nested at most 4 deep"),
        ("a = " + "[" * 6 + "]" * 6, "nested at most 4 deep"),
        ("a." * 1900 + "a = 1", "nested at most 4 deep"),
        ("[" + "a . " * 900 + "a]", "nested at most 4 deep"),
        ('"a"."b".\'c\'."d"."e"."f" = 1', "nested at most 4 deep"),
        ("a = " + "1" * 3900, "digits"),
        ("a = 123456789", "at most 8 digits"),
        ("a = 0x" + "f" * 3000, "at most 8 digits"),
        ("a = inf", "must be finite"),
        ("a = nan", "must be finite"),
        ("a = 1e999", "must be finite"),
        ('a = "' + "x" * 41 + '"', "at most 40 characters"),
        ("a = [" + "1," * 60 + "1]", "at most 60 values"),
        ("a = 1\na = 2", "must be TOML"),
        ("a = 2026-13-01", "must be TOML"),
        (b"a = '\xff'", "UTF-8"),
        ("#" * 4001, "at most 4000 bytes"),
    ],
)
def test_toml_beyond_its_bounds_is_refused_in_one_line(text: str | bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=message) as error:
        parse_toml(text, SMALL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        'a = "........" # ........',
        "a = '''\n......\n'''",
        'a = """\n.......\\""" \n......"""',
        "a = [1.5, 1.5, 1.5, 1.5, 1.5, 1.5]",
        "b = {x = 1.5, y = 1.5, z = 1.5, w = 1.5, v = 1.5}",
    ],
)
def test_dots_in_texts_comments_and_numbers_are_no_nesting(text: str) -> None:
    assert parse_toml(text, SMALL) == tomllib.loads(text)


TABLES = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])) | st.integers(-(2**63), 2**63 - 1),
    max_size=5,
)


@given(TABLES)
def test_toml_within_bounds_is_what_the_library_reads(table: dict[str, object]) -> None:
    assert parse_toml(tomli_w.dumps(table)) == table


@given(st.text(max_size=60) | st.text("a.\"'[]{}=#\n\\ ,1", max_size=60))
def test_no_text_ends_in_anything_but_a_value_or_one_line(text: str) -> None:
    for parse in (parse_toml, parse_json):
        try:
            parse(text)
        except DocumentError as error:
            assert "\n" not in str(error)


def test_a_hostile_megabyte_is_refused_in_linear_time() -> None:
    import time

    for text in ('"""' + '\\"""' * 250_000, "'''" * 333_333, "a." * 500_000, '"' * 1_000_000):
        begun = time.process_time()
        with pytest.raises(DocumentError):
            parse_toml(text)
        assert time.process_time() - begun < 5


def test_files_are_read_within_bounds_and_errors_name_them(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(json.dumps({"a": [1, 2.5, None, "x"]}))
    assert read_json(path) == {"a": [1, 2.5, None, "x"]}
    with pytest.raises(DocumentError, match=f"^{path}: must be TOML"):
        read_toml(path)
    path.write_text("a = 1")
    assert read_toml(path) == {"a": 1}
    with pytest.raises(DocumentError, match=f"^{path}: must be JSON"):
        read_json(path)
    with pytest.raises(DocumentError, match=f"^{path}: must have at most 4 bytes"):
        read_bounded(path, 4)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "missing")
    with pytest.raises(DocumentError, match="must be a regular file"):
        read_json(Path("/dev/zero"))
    with pytest.raises(DocumentError, match="must be a regular file"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DocumentError, match="must be a regular file"):
        read_json(tmp_path / "pipe")
