"""Reads what a run or a site left on its disk into one frozen value; it judges nothing.

Three kinds of folder: a simulation's run (its sites' ledgers lie in it), a coordinator's run (the
counter-signed heads lie in it, the ledgers stay at the sites), and a site's own folder.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json, load_plan
from privacy.files import DocumentError, Limits, parse_json, parse_toml, read_bounded, read_json
from privacy.ledger.ledger import Entry, LedgerError, LedgerMissing, verify

SIMULATION: Final = "simulation"
FEDERATION: Final = "federation"
SITE: Final = "site"
NOTES: Final = ".notes.json"
ACTS: Final = "acts.json"
FAIRNESS: Final = "fairness.json"
LIMITS: Final = Limits(size=2**28, depth=32, digits=64, length=2**24, count=2**24)
"""Of a report's files, which hold every round of a run."""


class ReportError(ValueError):
    """A folder that nothing can be reported on: one line with the path and what was expected."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a report is not sound: a stable code, the place, and what was found there."""

    code: str
    where: str
    message: str

    def to_dict(self) -> dict[str, str]:
        return {"code": self.code, "where": self.where, "message": self.message}


@dataclass(frozen=True, slots=True)
class Book:
    """A ledger, read whole or, with `error`, not at all; `notes` is its log without the salt."""

    entries: tuple[Entry, ...] = ()
    digest: str = ""
    error: str | None = None
    notes: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """One folder's content; `books` by ledger name: a site's, or the coordinator's own."""

    kind: str
    name: str
    plan: Plan | None = None
    plan_digest: str | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    books: Mapping[str, Book] = field(default_factory=dict)
    heads: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    policy: Mapping[str, Any] | None = None
    plans: Mapping[str, Plan] = field(default_factory=dict)
    audit: Mapping[str, Any] | None = None
    fairness: Mapping[str, Any] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    acts: Mapping[str, Any] = field(default_factory=dict)
    damage: tuple[Problem, ...] = ()

    @property
    def run_id(self) -> str | None:
        """The run's own id, None for a site's folder."""
        return str(self.run["id"]) if "id" in self.run else None


def read(
    folder: Path, *, name: str | None = None, books: Mapping[str, Path] | None = None
) -> Source:
    """Everything that a folder holds; `books` take the place of its own ledgers by name."""
    name = name or folder.resolve().name
    kind = kind_of(folder)
    damage: list[Problem] = []

    def where(part: str) -> str:
        return f"{name}/{part}"

    plan = None
    if kind != SITE:
        try:
            plan = load_plan(folder / "plan.toml")
        except PlanError as error:
            damage.append(Problem("plan-unreadable", where("plan.toml"), str(error)))
    paths = {path.stem: path for path in sorted((folder / "ledgers").glob("*.jsonl"))}
    origin = _json(folder / "origin.json", where, damage)
    if not isinstance(origin.get("files", {}), dict):
        damage.append(Problem("file-unreadable", where("origin.json"), "files must be an object"))
        origin = {key: value for key, value in origin.items() if key != "files"}
    digest = plan.digest if plan is not None else None
    return Source(
        kind=kind,
        name=name,
        plan=plan,
        plan_digest=str(origin["plan"]) if "plan" in origin else digest,
        run=_json(folder / "run.json", where, damage),
        summary=_json(folder / "summary.json", where, damage),
        history=_history(folder / "history.jsonl", where, damage),
        books={site: read_book(path) for site, path in {**paths, **(books or {})}.items()},
        heads={
            path.stem: _lines(path, where("heads/" + path.name), damage)
            for path in sorted((folder / "heads").glob("*.jsonl"))
        },
        policy=_toml(folder / "policy.toml", where, damage),
        plans=_plans(folder / "plans") if kind == SITE else {},
        audit=_json(folder / "audit.json", where, damage) or None,
        fairness=_json(folder / FAIRNESS, where, damage) or None,
        origin=origin,
        acts=_acts(folder / ACTS, where, damage),
        damage=tuple(damage),
    )


def kind_of(folder: Path) -> str:
    """Which of the three kinds a folder is; ReportError for any other."""
    if not folder.is_dir():
        raise ReportError(f"{folder}: expected a run folder or a site's folder, found no folder")
    if (folder / "plan.toml").is_file():
        heads = (folder / "heads").is_dir()
        return FEDERATION if heads else SIMULATION
    marks = ("policy.toml", "populations.json", "site.json")
    if any((folder / mark).is_file() for mark in marks) or (folder / "ledgers").is_dir():
        return SITE
    raise ReportError(
        f"{folder}: expected a run folder (with plan.toml) or a site's folder (with policy.toml)"
    )


def read_book(path: Path) -> Book:
    """One ledger with the notes beside it; a ledger that does not verify becomes its error."""
    try:
        sound = verify(path)
    except (LedgerError, LedgerMissing) as error:
        return Book(error=str(error).removeprefix(f"{path}: "))
    notes = path.with_name(path.name + NOTES)
    try:
        records = read_json(notes, LIMITS) if notes.is_file() else []
    except DocumentError:
        records = None
    if not isinstance(records, list) or not all(
        isinstance(note, dict) and isinstance(note.get("what"), str) for note in records
    ):
        return Book(error=f"{notes.name}: expected a JSON list of notes")
    return Book(sound.entries, sound.digest, None, tuple(records))


def _acts(path: Path, where: Callable[[str], str], damage: list[Problem]) -> Mapping[str, Any]:
    """The acts as the evidence holds them; a trail that is not sound is damage."""
    acts = _json(path, where, damage)
    if acts and not acts.get("sound"):
        damage.append(Problem("audit-log-unsound", where(path.name), str(acts.get("problem"))))
    return acts


def _plans(folder: Path) -> dict[str, Plan]:
    """The plans that a site keeps, by digest; a text that is no plan is no plan of a run either."""
    plans: dict[str, Plan] = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(PlanError, OSError, UnicodeDecodeError):
            plan = from_json(path.read_text("utf-8"))
            plans[plan.digest] = plan
    return plans


def _json(path: Path, where: Callable[[str], str], damage: list[Problem]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = parse_json(read_bounded(path, LIMITS.size), LIMITS, nan_is_null=True)
    except DocumentError as error:
        value, reason = None, str(error)
    else:
        reason = f"got {type(value).__name__}"
    if isinstance(value, dict):
        return value
    message = f"expected one JSON object, {reason}"
    damage.append(Problem("file-unreadable", where(path.name), message))
    return {}


def _toml(
    path: Path, where: Callable[[str], str], damage: list[Problem]
) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return parse_toml(path.read_bytes())
    except DocumentError as error:
        damage.append(Problem("file-unreadable", where(path.name), str(error)))
        return None


def _lines(path: Path, where: str, damage: list[Problem]) -> tuple[Mapping[str, Any], ...]:
    rows: list[Mapping[str, Any]] = []
    if not path.is_file():
        return ()
    text = path.read_text("utf-8", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        try:
            row = parse_json(line, LIMITS, nan_is_null=True)
        except DocumentError:
            row = None
        if not isinstance(row, dict):
            message = f"expected one JSON object, got {line[:40]!r}"
            damage.append(Problem("file-unreadable", f"{where} line {number}", message))
            return tuple(rows)
        rows.append(row)
    return tuple(rows)


def _history(
    path: Path, where: Callable[[str], str], damage: list[Problem]
) -> tuple[Mapping[str, Any], ...]:
    """The rounds in the file's order, as far as each is a whole line of the agreed shape."""
    rows: list[Mapping[str, Any]] = []
    for number, row in enumerate(_lines(path, where(path.name), damage), start=1):
        expected = _shape(row, rows)
        if expected:
            place = f"{where(path.name)} line {number}"
            damage.append(Problem("history-unreadable", place, f"expected {expected}"))
            break
        rows.append(row)
    return tuple(rows)


def _shape(row: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> str | None:
    """What a history line should have been, or None where it is one."""
    last = before[-1]["round"] if before else 0
    number = row.get("round")
    if isinstance(number, bool) or not isinstance(number, int) or number <= last:
        return f"a round above {last}, got {number!r}"
    sites = row.get("sites")
    if not isinstance(sites, dict) or not all(isinstance(s, dict) for s in sites.values()):
        return "an object of sites"
    for site, answer in sites.items():
        if answer.get("status") not in ("trained", "declined", "failed"):
            return f"a status trained, declined or failed of {site}, got {answer.get('status')!r}"
        for key in ("epsilon", "epsilon_round", "sigma", "rate", "steps", "delta"):
            if not _number_or_none(answer.get(key)):
                return f"a number or null as {key} of {site}, got {answer.get(key)!r}"
    if not _number_or_none(row.get("epsilon")):
        return f"a number or null as epsilon, got {row.get('epsilon')!r}"
    metrics = row.get("metrics", {})
    if not isinstance(metrics, dict):
        return "an object of metrics"
    return None


def _number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
