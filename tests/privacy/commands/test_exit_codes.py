"""Whatever a terminal or a stream can take, a command ends as it should, and never as bad input."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from privacy.commands import exit_codes
from privacy.commands.exit_codes import StartedError, started

PROGRAM = """
import typer
from privacy.commands.exit_codes import BAD_INPUT, run, started
app = typer.Typer()
@app.command()
def work(kind: str):
    with started():
        if kind == "fails":
            raise ValueError("the last word")
        for _ in range(2000 if kind == "long" else 1):
            print("\\u03b5 = 1 \\u2264 2, \\u00e9t\\u00e9, \\u03b4, \\u6771, \\udce9")
    if kind == "bad":
        raise ValueError("bad")
run(app, "name", lambda: {ValueError: BAD_INPUT})
"""


def ended(kind: str, encoding: str = "utf-8", to: str = "") -> tuple[int, str, str]:
    """The exit code of the program, its output, and what it says of itself."""
    environment = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    words = [sys.executable, "-c", PROGRAM, kind]
    with open(to or os.devnull, "w") as file:  # noqa: PTH123
        done = subprocess.run(
            words,
            stdout=file if to else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[3])},
            check=False,
            timeout=300,
        )
    return done.returncode, (done.stdout or b"").decode(encoding), done.stderr.decode(encoding)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "epsilon = 1 ? 2, ete, delta, ?, ?\n"),
        ("latin-1", "epsilon = 1 ? 2, \u00e9t\u00e9, delta, ?, ?\n"),
        ("utf-8", "\u03b5 = 1 \u2264 2, \u00e9t\u00e9, \u03b4, \u6771, ?\n"),
    ],
)
def test_what_a_terminal_cannot_show_is_replaced(encoding: str, shown: str) -> None:
    assert ended("good", encoding) == (0, shown, "")


def test_a_full_disk_behind_stdout_is_a_failure_of_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    for kind in ("good", "long"):
        code, _, said = ended(kind, to="/dev/full")
        assert (code, said) == (1, "name: output: No space left on device\n")
    assert ended("bad", to="/dev/full")[::2] == (2, "name: bad\n")


def test_a_reader_that_goes_away_ends_a_command_without_a_word() -> None:
    words = [sys.executable, "-c", PROGRAM, "long"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_what_fails_once_work_has_begun_is_no_bad_input() -> None:
    assert ended("fails")[::2] == (1, "name: the last word\n")
    with pytest.raises(ValueError, match="before"), started(lambda: False):
        raise ValueError("before")
    with pytest.raises(StartedError, match="after"), started():
        raise ValueError("after")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "/a/b"),
            "/a/b: Read-only file system (name",
        ),
        (PermissionError(errno.EACCES, "Permission denied", b"/a"), "/a: Permission denied (name"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/a"),
            "/a: No space left on device (free",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a"), "/a: No such file"),
        (OSError("in words"), "in words"),
        (ValueError("in words"), "in words"),
    ],
)
def test_a_place_that_cannot_be_used_is_named_with_the_next_step(
    error: Exception, said: str
) -> None:
    message = exit_codes._said(error)
    assert message.startswith(said)
    assert "Errno" not in message


def test_any_character_has_something_in_its_place() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    exit_codes._show_anything(stream)
    every = "".join(chr(i) for i in range(0x3000))
    stream.write(every)
    stream.flush()
    assert len(stream.buffer.getvalue()) >= len(every) - 500  # type: ignore[attr-defined]
