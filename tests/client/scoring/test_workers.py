"""Workers share a file: the same bytes, the same refusals, nothing half-written."""

import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.data.formats import records
from client.data.input_files import Cut, chunks
from client.inference.predictor import predictor
from client.models.loading import find, load
from client.models.provenance import Trust
from client.scoring.batch import run as predicted
from client.scoring.ordered import WorkersError
from client.scoring.output_files import FORMATS
from client.scoring.processes import Processes
from client.scoring.work import Output, Refused, Scored, Work
from client.tasks.registry import task as find_task
from tests.support.models import command, own_key, plan_for, release, shaken

CITY = """
[columns.city]
type = "category"
values = ["Oslo", "Bergen"]
"""
SCHEMA = f"""
label = "ill"
[columns.age]
type = "number"
min = 0
max = 120
{CITY}
[columns.ill]
type = "category"
values = ["no", "yes"]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "table"
    plan, task = plan_for("table", schema=SCHEMA), find_task("table", SCHEMA)
    release(folder, 5, plan=plan, network=shaken(task), key=own_key(folder))
    return folder


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few lines come in many parts."""
    monkeypatch.setattr(records, "BLOCK", 64)
    monkeypatch.setattr(records, "_COLUMN", 8)


def people(path: Path, rows: int, bad: tuple[int, ...] = ()) -> Path:
    """Rows with quoted texts, line breaks inside of quotes and empty lines among them."""
    lines = ["name,age,city"]
    for row in range(rows):
        age = "old" if row in bad else str(row % 120)
        name = f'"a, ""{row}""' + ("\nof two lines" if row % 7 == 3 else "") + '"'
        lines += [f"{name},{age},{('Oslo', 'Bergen')[row % 2]}", *([""] if row % 11 == 5 else [])]
    path.write_text("\n".join(lines) + "\n")
    return path


class Here:
    """An engine without processes: parts are pickled, and done when their result is asked for."""

    room = 3

    def __init__(self, work: Work) -> None:
        self.work: Work = pickle.loads(pickle.dumps(work))
        self.closed, self.most, self._with = False, 0, 0

    def submit(self, *arguments: Any) -> bytes:
        self._with += 1
        self.most = max(self.most, self._with)
        return pickle.dumps(arguments)

    def result(self, asked: bytes) -> Scored | Refused:
        self._with -= 1
        answer = pickle.loads(pickle.dumps(self.work.done(*pickle.loads(asked))))
        assert isinstance(answer, Scored | Refused)
        return answer

    def close(self) -> None:
        self.closed = True


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("suffix", FORMATS)
def test_two_processes_write_the_bytes_that_one_writes(
    run: Path, suffix: str, tmp_path: Path
) -> None:
    data = people(tmp_path / "people.csv", 60)
    words = ("predict", "--model", run, "--data", data, "--id", "name", "--probabilities")
    one = command(*words, "--out", tmp_path / f"one{suffix}", "--json")
    two = command(*words, "--out", tmp_path / f"two{suffix}", "--json", "--workers", "2")
    assert (one.code, two.code) == (0, 0), two.err
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()
    assert one.json | {"out": ""} == two.json | {"out": ""}
    assert two.json["rows"] == 60


def engines(made: list[Here]) -> Callable[[Work], Here]:
    """Starts of an engine in this process."""

    def start(work: Work) -> Here:
        made.append(Here(work))
        return made[-1]

    return start


def both(run: Path, data: Path, folder: Path, **how: Any) -> list[tuple[str, bytes, Any]]:
    """What becomes of a file in one process, and with workers; memory holds `room` parts."""
    ready = predictor(load(find(str(run)), Trust()))
    answers, made = [], list[Here]()
    for name, start in (("one", None), ("two", engines(made))):
        out = folder / f"{name}.csv"
        for old in folder.glob(f"*{name}.csv*"):
            old.unlink()
        try:
            tally = predicted(ready, data, out, sys.stdout, start=start, **how)
        except ValueError as error:
            assert not list(folder.glob(f"*{name}.csv*"))
            answers.append((str(error), b"", None))
            continue
        facts = (tally.rows, tally.skipped, tally.unknown, tally.numbers, tally.faults)
        answers.append(("", out.read_bytes(), facts))
    assert all(one.closed and one.most <= Here.room for one in made)
    return answers


@pytest.mark.usefixtures("small_blocks")
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=st.text('a1,"\n\r \u00e9\0', max_size=150), skip_bad=st.booleans())
def test_whatever_a_file_holds_workers_make_of_it_what_one_process_makes(
    run: Path, content: str, skip_bad: bool, tmp_path: Path
) -> None:
    data = tmp_path / "odd.csv"
    data.write_bytes(("name,age,city\n" + content).encode())
    one, two = both(run, data, tmp_path, skip_bad=skip_bad, explain=2)
    assert one == two


@pytest.mark.usefixtures("small_blocks")
def test_a_row_that_does_not_fit_is_told_as_by_one_process(run: Path, tmp_path: Path) -> None:
    data = people(tmp_path / "people.csv", 40, bad=(17, 33))
    one, two = both(run, data, tmp_path)
    assert one == two
    assert "column age" in one[0]
    assert "old" not in one[0]
    one, two = both(run, data, tmp_path, skip_bad=True, explain=20, ident="name")
    assert one == two
    assert one[2][:2] == (38, 2)
    text = data.read_text() + '"never closed,1,Oslo\n'
    data.write_text(text)
    one, two = both(run, data, tmp_path)
    assert one == two
    assert "column age" in one[0], "the bad row comes before the quote that never closes"
    one, two = both(run, data, tmp_path, skip_bad=True)
    assert one == two
    assert "closing quote" in one[0]


def test_parquet_and_arrays_are_shared_too(run: Path, tmp_path: Path) -> None:
    ages = np.arange(50.0)
    table = pa.table({"age": ages, "city": ["Oslo", "Bergen"] * 25})
    parquet.write_table(table, tmp_path / "people.parquet", row_group_size=7)
    one, two = both(run, tmp_path / "people.parquet", tmp_path, explain=3)
    assert one == two
    assert one[2][0] == 50
    folder = tmp_path / "numbers"
    numbers = SCHEMA.replace(CITY, "")
    plan, task = plan_for("table", schema=numbers), find_task("table", numbers)
    release(folder, 5, plan=plan, network=shaken(task), key=own_key(folder))
    np.savez(tmp_path / "ages.npz", x=np.arange(30.0).reshape(30, 1))
    one, two = both(folder, tmp_path / "ages.npz", tmp_path)
    assert one == two
    assert one[2][0] == 30
    one, two = both(run, tmp_path / "absent.csv", tmp_path)
    assert one == two
    assert "expected a file or a folder, found none" in one[0]


@pytest.mark.usefixtures("small_blocks")
def test_the_parts_of_a_file_know_how_many_rows_they_have(tmp_path: Path) -> None:
    data = people(tmp_path / "people.csv", 50)
    cut = Cut.of(find_task("table", SCHEMA), data)
    parts = list(cut.parts())
    assert len(parts) > 10
    assert sum(part.rows for part in parts) == 50
    for part in parts:
        rows = cut.encoded(pickle.loads(pickle.dumps(part)), 1).rows
        assert len(rows) == part.rows
    assert sum(len(chunk.rows) for chunk in chunks(cut.task, data)) == 50


class Dies(Work):
    """A work whose process ends in the middle of a part."""

    def done(self, *arguments: Any) -> Scored | Refused:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_dies_ends_the_work_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    data, out = people(tmp_path / "people.csv", 5), tmp_path / "out.csv"
    ready = predictor(load(find(str(run)), Trust()))

    def start(work: Work) -> Processes:
        return Processes(Dies(work.model, work.data, None, Output("csv")), 1)

    with pytest.raises(WorkersError, match="a worker process has died"):
        predicted(ready, data, out, sys.stdout, start=start)
    assert not list(tmp_path.glob("*out.csv*"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--engine", "threads"), "--engine must be processes or ray, got 'threads'"),
        (("--address", "127.0.0.1:1"), "--address must be used with --engine ray"),
        (("--workers", "2", "--device", "cuda"), "--device must be cpu"),
    ],
)
def test_what_does_not_fit_together_is_refused(words: tuple[str, ...], told: str) -> None:
    answer = command("predict", "--model", "absent", "--data", "absent", *words)
    assert answer.code == 2
    assert told in answer.err


def test_an_address_without_a_cluster_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    data, out = people(tmp_path / "people.csv", 5), tmp_path / "out.csv"
    words = ("predict", "--model", run, "--data", data, "--out", out, "--engine", "ray")
    for more, told in (
        ((), "--address (or RAY_ADDRESS) must be given"),
        (("--address", "127.0.0.1:1"), "--address must be the HOST:PORT of a running Ray"),
        (("--address", "nonsense"), "--address must be the HOST:PORT of a running Ray"),
    ):
        answer = command(*words, *more)
        assert answer.code == 2
        assert told in answer.err
    assert not out.exists()
