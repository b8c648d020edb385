"""Copies what a report rests on into the report, so that it can be recomputed anywhere.

A simulation's and a site's evidence is the files themselves, but for the ledgers' logs, whose salt
stays where it is. A coordinator's evidence is what its readers may see: sites under pseudonyms, no
counts; the originals' digests stand beside it.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from privacy.audit_trail import read as read_trail
from privacy.contract.plan import PlanError, SitePlan
from privacy.contract.plan_file import load_plan
from privacy.files import DocumentError, canonical_json, parse_json, read_json
from privacy.ledger.chain import LedgerError, locked
from privacy.ledger.entries import check_anchors, verify
from privacy.report.sources import (
    ACTS,
    FAIRNESS,
    FEDERATION,
    LIMITS,
    NOTES,
    SIMULATION,
    SITE,
    ReportError,
    kind_of,
)

_WHOLE: Final = ("plan.toml", "history.jsonl", "run.json", "summary.json", "policy.toml")
_SUMMARY: Final = ("task", "unit", "rounds", "metrics", "reason", "exit_reason", "versions")
_RUN: Final = ("id", "plan", "created", "seed", "insecure")
_HEAD: Final = ("run", "round", "n", "digest", "leaves", "events", "acknowledged")


def collect(folder: Path, into: Path) -> dict[str, str]:
    """Copy a folder's evidence; returns the pseudonyms by site, for the coordinator's eyes alone.

    Histories go before ledgers: of a run in progress the ledgers may be ahead, never behind.
    """
    kind = kind_of(folder)
    into.mkdir(parents=True)
    whole = [name for name in _WHOLE if (folder / name).is_file()]
    data = {name: (folder / name).read_bytes() for name in whole}
    for name in ("audit.json", FAIRNESS):  # neither names a site
        if (folder / name).is_file():
            (into / name).write_bytes((folder / name).read_bytes())
    origin: dict[str, Any] = {
        "files": {name: hashlib.sha256(value).hexdigest() for name, value in data.items()},
        "model": _model(folder),
    }
    names: dict[str, str] = {}
    if kind == FEDERATION:
        names, origin["plan"] = _disguised(folder, data, into)
    else:
        for name, value in data.items():
            (into / name).write_bytes(value)
    if kind != SIMULATION:
        _write(into / ACTS, _acts(folder, kind, names))
    for name, path in ledgers(folder, kind).items():
        _ledger(path, into / "ledgers" / f"{name}.jsonl")
    if kind == SITE:
        for path in sorted((folder / "plans").glob("*.json")):
            (into / "plans").mkdir(exist_ok=True)
            (into / "plans" / path.name).write_bytes(path.read_bytes())
    (into / "origin.json").write_text(canonical_json(origin) + "\n", "utf-8")
    return names


def _acts(folder: Path, kind: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Who did what, as far as the readers may know it, and whether the trail is sound.

    A coordinator's report names sites by their pseudonyms, and tells no fingerprint and no reason,
    which could name them.
    """
    home = folder.resolve().parent.parent if kind == FEDERATION else folder
    try:
        acts = [act.to_dict() for act in read_trail(home)]
    except LedgerError as error:
        return {"sound": False, "problem": str(error).removeprefix(f"{home}/"), "acts": []}
    if kind == FEDERATION:
        run = folder.resolve().name
        known = {**names, run: run, "coordinator": "coordinator"}
        acts = [
            {k: act[k] for k in ("time", "user", "command")}
            | {"object": known.get(act["object"], "another"), "fingerprint": "", "reason": ""}
            for act in acts
        ]
    return {"sound": True, "problem": "", "acts": acts}


def ledgers(folder: Path, kind: str) -> dict[str, Path]:
    """The ledgers of a folder by name: a coordinator's lies in its home, a site's where it said."""
    home = folder.parent.parent if kind == FEDERATION else folder
    paths = {path.stem: path for path in sorted((home / "ledgers").glob("*.jsonl"))}
    if kind == SITE and (folder / "populations.json").is_file():
        try:
            known = read_json(folder / "populations.json")
            named = {str(one["name"]): Path(one["ledger"]) for one in known}
        except (ValueError, KeyError, TypeError):
            raise ReportError(f"{folder / 'populations.json'}: expected populations") from None
        paths = {n: p for n, p in paths.items() if p.absolute() not in named.values()} | named
    return paths


def pseudonyms(sites: Iterable[str], run: str) -> dict[str, str]:
    """A letter a site, in an order that nobody can tell from the names."""
    order = sorted(set(sites), key=lambda s: hashlib.sha256(f"{run}\n{s}".encode()).digest())
    return {site: f"site-{_letters(index)}" for index, site in enumerate(order)}


def _letters(index: int) -> str:
    text = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


def _ledger(path: Path, into: Path) -> None:
    """The ledger's bytes under its lock, and its log as notes without the salt."""
    into.parent.mkdir(exist_ok=True)
    try:
        with locked(path, write=False):
            into.write_bytes(path.read_bytes())
    except LedgerError as error:
        raise ReportError(str(error)) from None
    notes: list[dict[str, Any]] = []
    try:
        sound = verify(path)
        for note in sound.log or ():
            details = {k: v for k, v in note.details.items() if k != "salt"}
            notes.append({"what": note.what, "at": note.at, "entries": note.entries, **details})
        if sound.log is not None:
            lost = check_anchors(path, list(sound.entries), list(sound.log))
            if lost is not None:
                notes.append({"what": "untrusted", "lost": lost})
    except LedgerError as error:
        if error.path != str(path):
            notes.append({"what": "untrusted", "lost": f"its log is not sound ({error})"})
    text = canonical_json(notes) + "\n"
    into.with_name(into.name + NOTES).write_text(text, "utf-8")


def _model(folder: Path) -> dict[str, str] | None:
    """Name and digest of the last released model."""
    checkpoints = sorted((folder / "checkpoints").glob("*.safetensors"))
    if not checkpoints:
        return None
    with checkpoints[-1].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": checkpoints[-1].name, "sha256": digest}


def _disguised(
    folder: Path, data: Mapping[str, bytes], into: Path
) -> tuple[dict[str, str], str | None]:
    """Write a coordinator's files under pseudonyms; the names used, and the plan's own digest."""
    try:
        plan = load_plan(folder / "plan.toml")
    except PlanError as error:
        raise ReportError(f"{folder / 'plan.toml'}: {error}") from None
    run = _object(data.get("run.json", b"{}"))
    lines = data.get("history.jsonl", b"").decode("utf-8", errors="replace")
    heads = sorted((folder / "heads").glob("*.jsonl"))
    named = {path.stem for path in heads} | set(plan.site)
    named |= {site for line in lines.splitlines() for site in _object(line).get("sites", {})}
    names = pseudonyms(named, str(run.get("id", "")))
    overrides = {
        names[site]: SitePlan(epsilon=terms.epsilon, limit=terms.limit)
        for site, terms in plan.site.items()
    }
    (into / "plan.toml").write_text(replace(plan, site=overrides).to_toml(), "utf-8")
    _write(into / "run.json", {k: v for k, v in run.items() if k in _RUN})
    summary = _object(data.get("summary.json", b"{}"))
    _write(into / "summary.json", {k: v for k, v in summary.items() if k in _SUMMARY})
    (into / "history.jsonl").write_text(_renamed(lines, names), "utf-8")
    (into / "heads").mkdir()
    for path in heads:
        records = [
            canonical_json({k: v for k, v in _object(line).items() if k in _HEAD})
            for line in path.read_text("utf-8", errors="replace").splitlines()
        ]
        text = "".join(line + "\n" for line in records)
        (into / "heads" / f"{names[path.stem]}.jsonl").write_text(text, "utf-8")
    return names, plan.digest


def _renamed(lines: str, names: Mapping[str, str]) -> str:
    """The history with its sites renamed; a line that cannot be read stays a line that cannot."""
    rows: list[str] = []
    for line in lines.splitlines():
        row = _object(line)
        sites = row.get("sites")
        if isinstance(sites, dict):
            row["sites"] = {names[site]: answer for site, answer in sites.items()}
            rows.append(canonical_json(row))
        else:
            rows.append(re.sub(r"[^ -~]|[a-zA-Z-]{3,}", "?", line))
    return "".join(line + "\n" for line in rows)


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = parse_json(text, LIMITS, nan_is_null=True)
    except DocumentError:
        return {}
    return value if isinstance(value, dict) else {}


def _write(path: Path, value: object) -> None:
    path.write_text(canonical_json(value) + "\n", "utf-8")
