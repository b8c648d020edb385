"""What comes from outside is read within bounds: no module parses by itself but those listed."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("privacy", "client", "server", "simulations")
BY_THEMSELVES = {
    "privacy/files.py": "the bounded readers",
    "privacy/ledger/chain.py": "a line whose seal holds, of a bounded length",
    "privacy/report/bundle/verify.py": "what was written by itself a line before",
    "privacy/report/bundle/write.py": "what was written by itself a line before",
    "client/serving/request.py": "bodies: bytes and rows are bounded before, types after; fuzzed",
    "client/tasks/packages/worker.py": "in the closed process, from its parent",
    "client/audit/reply_checks.py": "the audit's own reply",
    "server/registry/head_files.py": "its own lines; what sites send is checked in reply_check",
    "server/service/queue.py": "its own rows of SQLite",
    "server/rounds/history.py": "its own lines",
    "server/rounds/run_folder.py": "its own lines",
    "server/rounds/checkpoint.py": "a header of at most 100 MB; fuzzed",
    "server/tracking.py": "a history's own lines",
    "server/dashboard/run_status.py": "a history's own lines; fuzzed",
    "server/dashboard/run_history.py": "a history's own lines; fuzzed",
    "client/tasks/features/sentence_encoder.py": "files of a backbone that the owner chose by hash",
    "privacy/report/languages/translation.py": "its own files",
    "simulations/own_task.py": "its own argument",
}
PARSERS = {("json", "loads"), ("json", "load"), ("tomllib", "loads"), ("tomllib", "load")}
NEVER = {("pickle", "loads"), ("pickle", "load"), ("yaml", "load"), ("marshal", "loads")}


@cache
def calls(path: Path) -> frozenset[tuple[str, str]]:
    """Each `module.function` that a file names; a file is parsed once for all tests."""
    return frozenset(_calls(path))


def _calls(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.value.id, node.attr
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def users(of: set[tuple[str, str]]) -> set[str]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {p.relative_to(ROOT).as_posix() for p in files if of & calls(p)}


def test_documents_are_parsed_by_the_bounded_readers_alone() -> None:
    assert users(PARSERS) <= BY_THEMSELVES.keys(), "use privacy.files: parse_json, parse_toml"


def test_no_module_is_listed_that_parses_nothing() -> None:
    assert not BY_THEMSELVES.keys() - users(PARSERS)


def test_nothing_that_could_run_code_is_loaded() -> None:
    assert not users(NEVER)


@pytest.mark.parametrize(
    "source", ["import json\njson.loads('1')", "from json import loads\nloads('1')"]
)
def test_a_parser_is_found_however_it_is_called(source: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(source)
    assert PARSERS & set(calls(tmp_path / "x.py"))
