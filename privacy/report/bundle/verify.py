"""Checks a filed report anywhere, offline: signature, digests, chains, and every figure again."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from privacy.accounting.events import Event
from privacy.files import DocumentError, read_json
from privacy.report.bundle.seal import NAME, Seal, changed, origin, read_seal
from privacy.report.recount import TOLERANCE, counted
from privacy.report.report import build
from privacy.report.sources import (
    FEDERATION,
    LIMITS,
    Book,
    Problem,
    ReportError,
    Source,
    read,
    read_book,
)

_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check found: `origin` says who signed, `differences` is empty where all agrees."""

    origin: str
    differences: tuple[Problem, ...]
    figures: int

    @property
    def sound(self) -> bool:
        return not self.differences


def verify(
    folder: Path, ledgers: Mapping[str, Path] | None = None, authority: bytes | None = None
) -> Verification:
    """Check the report in `folder`; `ledgers` take the place of the copies in it, by name.

    ReportError where there is no report at all. A ledger that has grown since is cut back to what
    was reported; one that was rewritten is a difference.
    """
    if not (folder / NAME).is_file() and not (folder / "report.json").is_file():
        raise ReportError(f"{folder}: expected a report's folder with report.json and {NAME}")
    try:
        sealed = read_seal(folder / NAME)
    except ValueError as error:
        return Verification("no signature", (Problem("signature-invalid", NAME, str(error)),), 0)
    who, differences = origin(sealed, authority)
    differences += changed(folder, sealed)
    touched = any(d.where == "report.json" for d in differences)
    more, figures = _recomputed(folder, sealed, ledgers or {}, exactly=touched)
    unique = tuple(dict.fromkeys([*differences, *more]))
    return Verification(who, unique, figures)


def _recomputed(
    folder: Path, sealed: Seal, ledgers: Mapping[str, Path], *, exactly: bool
) -> tuple[list[Problem], int]:
    """Build the report again from its evidence and compare every value with the one stated."""
    try:
        stated = read_json(folder / "report.json", LIMITS)
    except (OSError, DocumentError) as error:
        return [Problem("report-unreadable", "report.json", str(error))], 0
    problems: list[Problem] = []
    try:
        places = sorted(p for p in (folder / "evidence").iterdir() if p.is_dir())
        order = {name: index for index, name in enumerate(sealed.filing.get("sources", ()))}
        places.sort(key=lambda place: order.get(place.name, len(order)))
        sources = [_with(read(place), ledgers, problems) for place in places]
        again = build(sources, sealed.filing).content
    except (OSError, ReportError) as error:
        return [*problems, Problem("evidence-unreadable", "evidence", str(error))], 0
    count = 0
    problems += [Problem(**problem) for problem in again["verdict"]["problems"]]
    different: list[Problem] = []
    for path, one, other in _leaves(stated, json.loads(json.dumps(again)), "report.json"):
        count += isinstance(one, int | float)
        if not _same(one, other, exactly=exactly):
            message = f"{_show(one)} is stated, recomputed is {_show(other)}"
            different.append(Problem("figure-differs", path, message))
    if len(different) > _SHOWN:
        more = f"and {len(different) - _SHOWN} more values differ"
        different[_SHOWN:] = [Problem("figure-differs", "report.json", more)]
    return problems + different, count


def _with(source: Source, ledgers: Mapping[str, Path], problems: list[Problem]) -> Source:
    """The source with the given ledgers, each as long as it was when it was reported."""
    books = dict(source.books)
    for name, path in ledgers.items():
        if name in books:
            books[name] = _cut(read_book(path), books[name], f"{path}", problems)
        elif source.kind == FEDERATION and name in source.heads:
            _own_ledger(source, name, path, problems)
    return replace(source, books=books)


def _cut(given: Book, copy: Book, where: str, problems: list[Problem]) -> Book:
    if given.error is not None or copy.error is not None:
        return replace(given, notes=copy.notes)
    length = len(copy.entries)
    prefix = given.entries[:length]
    if prefix != copy.entries:
        first = next(
            (n for n, (a, b) in enumerate(zip(prefix, copy.entries, strict=False), 1) if a != b),
            len(prefix) + 1,
        )
        message = f"entry {first} is not the one that was reported"
        problems.append(Problem("ledger-differs", where, message))
        return replace(given, notes=copy.notes)
    return copy


def _own_ledger(source: Source, name: str, path: Path, problems: list[Problem]) -> None:
    """A federation's report against a site's own ledger: the run's events must be the same."""
    book = read_book(path)
    if book.error is not None:
        problems.append(Problem("ledger-broken", str(path), book.error))
        return
    heads = [head for head in source.heads[name] if head.get("run") == source.run_id]
    last: Mapping[str, Any] = heads[-1] if heads else {"n": 0, "events": []}
    totals = counted(Event.from_dict(event) for event in last["events"])
    reached = book.entries[: last["n"]]
    if counted(e.event for e in reached if e.run == source.run_id) != totals:
        message = f"its entries of this run are not what the heads of {name} were said to hold"
        problems.append(Problem("ledger-differs", str(path), message))


def name_ledgers(folder: Path, given: Sequence[str]) -> dict[str, Path]:
    """Which ledger stands for which name: NAME=PATH, or a file's own name, or the only one."""
    evidence = folder / "evidence"
    names = {p.stem for p in evidence.glob("*/ledgers/*.jsonl")}
    names |= {p.stem for p in evidence.glob("*/heads/*.jsonl")}
    paths: dict[str, Path] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        path = Path(rest if equals and name in names else text)
        if not path.is_file():
            raise ReportError(f"--ledger: expected a file, or NAME=FILE, got {text}")
        if not (equals and name in names):
            name = path.stem if path.stem in names or len(names) != 1 else next(iter(names))
        if name not in names:
            expected = ", ".join(sorted(names)) or "none"
            raise ReportError(f"--ledger: expected NAME=FILE with a name of {expected}, got {text}")
        paths[name] = path
    return paths


def _leaves(one: Any, other: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of values at the same place; a place that one side lacks is a pair with None."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _leaves(
                one.get(key),
                other.get(key),
                f"{path}: {key}" if ": " not in path else f"{path}.{key}",
            )
    elif isinstance(one, list) and isinstance(other, list):
        for index in range(max(len(one), len(other))):
            here = one[index] if index < len(one) else None
            there = other[index] if index < len(other) else None
            yield from _leaves(here, there, f"{path}[{index}]")
    else:
        yield path, one, other


def _same(one: Any, other: Any, *, exactly: bool) -> bool:
    """Equal; or, unless `exactly`, two figures that differ by another machine's last digits."""
    if isinstance(one, float) and isinstance(other, float) and not exactly:
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=TOLERANCE * 1e-3)
    return bool(one == other and type(one) is type(other))


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
