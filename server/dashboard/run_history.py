"""A run's history as far as it has been read: each look reads, and tells, what was appended.

Reading is tolerant: a last line without its end is still being written and is left for the next
look; a whole line that cannot be read is counted. A round that stands twice, as after a crash,
counts as it stands last.
"""

import json
import math
import os
import secrets
from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

REASONS: Final[Mapping[str, str]] = {
    "budget-exhausted": "its privacy budget is spent",
    "plan-not-approved": "it has not approved this plan yet",
    "plan-denied": "its owner has denied this plan",
    "noise-too-low": "less noise than its policy asks for",
    "rate-too-high": "a larger sampling rate than its policy allows",
    "too-many-steps": "more steps a round than its policy allows",
    "too-many-rounds-today": "more rounds a day than its policy allows",
    "too-few-rows": "too few rows",
    "task-not-allowed": "its policy does not allow the task",
    "unit-not-allowed": "its policy asks for another unit of privacy",
    "no-subjects": "its data do not say whose a row is",
    "task-not-approved": "it has not approved this task package, or has other bytes",
    "schema-differs": "its data have another schema",
    "output-not-allowed": "its policy does not allow an output",
    "coordinator-not-trusted": "it does not trust the coordinator with un-noised updates",
    "ledger-untrusted": "its ledger and the coordinator's copy of its head do not agree",
    "model-refused": "the task's model or loss mixes examples, or cannot be followed by example",
    "bad-weights": "the weights it was sent are not usable",
    "no-answer": "no answer in time",
    "unpaid": "its update was not paid for in its ledger",
    "bad-reply": "its reply is not what was asked for",
    "bad-update": "its update is of another shape, or not of finite numbers",
    "too-quiet": "its update has less noise than the plan asks for",
    "too-loud": "its update is more than clipped sums and their noise can be",
    "old-reply": "it answered another round or run",
    "ledger-not-written": "its ledger cannot be written: its disk is full or broken",
    "paused": "its owner has paused it",
    "secure-not-allowed": "its policy allows no secure aggregation",
    "too-few-parties": "fewer parties than its policy asks for",
    "too-many-colluding": "the plan holds against fewer colluding parties than its policy asks for",
    "parties-not-known": "its owner has not approved the parties' keys",
    "bad-keys": "secure aggregation: keys without their owner's signature",
    "wrong-party-list": "secure aggregation: a list of parties that not all have signed",
    "bad-shares": "secure aggregation: shares that are not what they must be",
    "wrong-survivors": "secure aggregation: survivors that not enough have signed",
    "out-of-order": "secure aggregation: a message that does not follow the last one",
    "failed": "an error at the site",
}
"""The codes of refusals and failures in plain words."""

_TAIL: Final = 4096
"""Bytes before the place read to that must be as they were."""
_PIECE: Final = 1 << 20


class RunHistory:
    """The rounds of one history file, and each site's account of them, folded line by line.

    `rounds` are the lines without their sites. `sites` hold each site's last answer, its epsilons
    [round, epsilon], its rounds trained and its refusals. `unreadable` counts whole lines that
    cannot be read. `generation` changes when anything that was told before no longer holds.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self.generation = secrets.token_hex(8)
        self.rounds: list[dict[str, Any]] = []
        self.sites: dict[str, dict[str, Any]] = {}
        self.unreadable = 0
        self._file: tuple[int, int] | None = None
        self._read, self._tail = 0, b""

    @property
    def cursor(self) -> str:
        """What a later look names to be told only what came after this one."""
        return f"{self.generation}-{len(self.rounds)}"

    def after(self, cursor: str) -> int:
        """The number of rounds that whoever holds this cursor knows; 0 where it does not hold."""
        generation, _, count = cursor.partition("-")
        known = generation == self.generation and count.isascii() and count.isdigit()
        return int(count) if known and len(count) < 10 and int(count) <= len(self.rounds) else 0

    def look(self) -> None:
        """Read what was appended since the last look, or everything where the file is another."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if not self._goes_on(file, status):
                    self._begin()
                    self._file = (status.st_dev, status.st_ino)
                lines = self._appended(file)
                if self._in_order(lines):
                    self._fold(lines)
                    return
                self._begin()
                self._file = (status.st_dev, status.st_ino)
                file.seek(0)
                self._fold(_last_of_each(self._appended(file)))
        except OSError:
            self._begin()

    def _goes_on(self, file: Any, status: os.stat_result) -> bool:
        if self._file != (status.st_dev, status.st_ino) or status.st_size < self._read:
            return False
        file.seek(self._read - len(self._tail))
        return bool(file.read(len(self._tail)) == self._tail)

    def _appended(self, file: Any) -> list[dict[str, Any]]:
        """The whole lines from here to the end that can be read; the others are counted."""
        rows, rest = [], b""
        while piece := file.read(_PIECE):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                self._read += len(line) + 1
                self._tail = (self._tail + line[-_TAIL:] + b"\n")[-_TAIL:]
                row = _line(line.decode("utf-8", errors="replace"))
                if row is None:
                    self.unreadable += 1
                else:
                    rows.append(row)
        return rows

    def _in_order(self, rows: list[dict[str, Any]]) -> bool:
        numbers = [line["round"] for line in (*self.rounds[-1:], *rows)]
        return all(one < other for one, other in pairwise(numbers))

    def _fold(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            answers = row.pop("sites")
            trained = 0
            for name, answer in answers.items():
                site = self.sites.get(name)
                if site is None:
                    site = self.sites[name] = unheard()
                trained += _heard(site, answer, row["round"])
            self.rounds.append(row | {"asked": len(answers), "trained": trained})

    def new_epsilons(self, site: Mapping[str, Any], after: int) -> list[Any]:
        """A site's epsilons since the first `after` rounds."""
        number = self.rounds[after - 1]["round"] if after else 0
        epsilons: list[Any] = site["epsilons"]
        return epsilons[bisect_right(epsilons, number, key=lambda pair: pair[0]) :]


def unheard() -> dict[str, Any]:
    """What is told of a site that has not been asked yet."""
    return {
        "status": "waiting",
        "reason": None,
        "epsilon": None,
        "last": 0,
        "epsilons": [],
        "trained": 0,
        "refusals": [],
    }


def _heard(site: dict[str, Any], answer: Mapping[str, Any], number: int) -> bool:
    site |= {**answer, "last": number}
    site["epsilons"].append([number, answer["epsilon"]])
    if answer["status"] == "trained":
        site["trained"] += 1
        return True
    _count(site["refusals"], answer["status"], answer["reason"], number)
    return False


def _count(refusals: list[dict[str, Any]], status: str, reason: str | None, number: int) -> None:
    for one in refusals:
        if (one["status"], one["code"]) == (status, reason):
            one["times"] += 1
            one["last"] = number
            return
    words = REASONS.get(reason or "", "no reason given" if reason is None else "")
    refusals.append(
        {"status": status, "code": reason, "words": words, "times": 1}
        | {"first": number, "last": number}
    )


def _last_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_round = {row["round"]: row for row in rows}
    return [by_round[number] for number in sorted(by_round)]


def _line(text: str) -> dict[str, Any] | None:
    """A line in the one shape that the page knows; None where it is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("round")) is not int or row["round"] < 1:
        return None
    sites, metrics = row.get("sites"), row.get("metrics")
    if not isinstance(sites, dict) or not isinstance(metrics, dict):
        return None
    if not all(isinstance(answer, dict) for answer in sites.values()):
        return None
    figures = ("epsilon", "seconds", "bytes_up", "bytes_down")
    return {
        "round": row["round"],
        "metrics": {name: figure(value) for name, value in metrics.items()},
        "sites": {
            name: {
                "status": str(answer.get("status")),
                "reason": None if answer.get("reason") is None else str(answer["reason"]),
                "epsilon": figure(answer.get("epsilon")),
            }
            for name, answer in sites.items()
        },
    } | {name: figure(row.get(name)) for name in figures}


def figure(value: Any, otherwise: Any = None) -> Any:
    """A finite number as it is, since JSON knows no other."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return otherwise
    try:
        return value if math.isfinite(value) else otherwise
    except OverflowError:  # a whole number beyond every float
        return otherwise
