"""The log: one line an event, for people or as JSON, and every event of the code in its table."""

import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.event_log import CLIENT_EVENTS, SERVER_EVENTS, EventLog

ROOT = Path(__file__).resolve().parents[2]
TABLES = {"client": CLIENT_EVENTS, "server": SERVER_EVENTS}
LOGS = {"log", "_log", "on_event", "_tell", "_note"}
DERIVED = {"declined", "failed", "run_failed", "run_interrupted", "run_paused"}
"""A refusal is logged under its status, the end of a run under its reason."""


def logged(package: str) -> Iterator[tuple[str, str]]:
    """The names of the events that a package's code logs, with their file."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            name = function.id if isinstance(function, ast.Name) else name
            owner = ast.unparse(function)
            if name == "note" and owner.endswith("queue.note"):
                name, place = "log", 1
            else:
                place = 1 if name == "_note" else 0
            if name in LOGS and not owner.startswith(("math.", "np.", "torch.")):
                for value in constants(node.args[place]):
                    yield value, path.relative_to(ROOT).as_posix()


def constants(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from constants(node.body)
        yield from constants(node.orelse)


@pytest.mark.long
@pytest.mark.parametrize("package", TABLES)
def test_the_table_holds_every_event_of_the_code_and_no_other(package: str) -> None:
    used = dict(logged(package))
    assert not {name: where for name, where in used.items() if name not in TABLES[package]}
    assert not set(TABLES[package]) - set(used) - DERIVED


def test_names_are_snake_case_and_descriptions_are_sentences() -> None:
    for table in TABLES.values():
        for name, description in table.items():
            assert name.replace("_", "").isalpha() and name == name.lower()
            assert description[0].isupper() and description.endswith(".")


def test_an_event_is_one_json_line_on_its_stream() -> None:
    stream = io.StringIO()
    EventLog(as_json=True, stream=stream)("reply_dropped", reason="coordinator_restarted")
    line = json.loads(stream.getvalue())
    assert list(line) == ["time", "event", "reason"]
    assert (line["event"], line["reason"]) == ("reply_dropped", "coordinator_restarted")
    assert line["time"].endswith("+00:00")


def test_for_people_it_is_a_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    EventLog(as_json=False)("listening", where="127.0.0.1:1")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(" listening where=127.0.0.1:1\n")


@given(st.dictionaries(st.sampled_from("abcd"), st.text() | st.floats() | st.none()))
def test_whatever_is_logged_stays_one_line(facts: dict[str, object]) -> None:
    stream = io.StringIO()
    EventLog(as_json=True, stream=stream)("failed", **facts)
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("\n")


def test_a_full_disk_stops_nothing() -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115
    EventLog(as_json=True, stream=full)("stopped")
    with pytest.raises(OSError, match="No space"):
        full.close()
