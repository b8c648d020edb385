"""Processes of tests that are forks: what a test before them has loaded and read does no harm."""

import os
from pathlib import Path

import pyarrow.csv

from tests.support.forks import Fork


def test_a_fork_of_a_process_that_has_read_a_file_with_arrow_can_fork_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b\n" + "1,2\n" * 1000)
    pyarrow.csv.read_csv(file)  # it opens a pipe for signals, and keeps it

    def work() -> None:
        child = os.fork()
        if not child:
            os._exit(7)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    assert Fork(work).wait() == 7


def test_a_fork_holds_none_of_the_files_that_were_open_but_those_it_was_given() -> None:
    read, write = os.pipe()
    given, passed = os.pipe()
    process = Fork(lambda: os.write(passed, b"here") and os.read(0, 1), pass_fds=(passed,))
    os.close(write)
    os.close(passed)
    assert os.read(read, 1) == b""  # nobody else holds the other end
    assert os.read(given, 10) == b"here"
    process.kill()
    assert process.wait() == -9
    os.close(read)
    os.close(given)
