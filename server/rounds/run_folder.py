"""The run folder: what other programs read of a run, and all that `--resume` needs.

A checkpoint carries its round's history line, so that the history can always be rebuilt from what
is complete: the files can be behind one another after a kill, but never contradict.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privacy.arrays import Arrays
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan, override, parse
from privacy.files import naming, read_json, remove_stale, write_atomic
from server.rounds import checkpoint


class FolderError(ValueError):
    """A run folder that cannot be made or continued: bad input, nothing was started."""


def resumed_plan(path: Path, source: str | None, overrides: Sequence[str] = ()) -> Plan:
    """The plan that a run goes on with: its folder's, with other `[operation]`, `[simulation]`.

    `source` names the plan that the caller thinks it is. FolderError where that is of another task,
    or where an override would change what the sites approved.
    """
    plan = RunFolder.open(path).plan()
    if source is not None and (task := load_plan(source).task) != plan.task:
        raise FolderError(f"{path}: this run is of task {plan.task}, got a plan of {task}")
    return with_operation(plan, overrides)


def with_operation(plan: Plan, overrides: Sequence[str]) -> Plan:
    """The plan with overrides, none of which may change what the sites approved; FolderError."""
    table = plan.to_dict()
    override(table, [one for one in overrides if one.partition("=")[0].strip() != "schema"])
    if table.get(plan.units_key) == "actual":  # counted when the run began
        table[plan.units_key] = plan.nominal_units
    changed = parse(table)
    if changed.digest != plan.digest:
        old, new = plan.to_dict(), changed.to_dict()
        key = next(name for name in old | new if old.get(name) != new.get(name))
        raise FolderError(
            f"this run has {key} = {old.get(key)}, got {new.get(key)}: only [operation] "
            "and [simulation] may change; begin another run"
        )
    return changed


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`runs/<name>/`: plan.toml, run.json, history.jsonl, summary.json, checkpoints/.

    `sign` signs a complete checkpoint's file. An `insecure` run (reproducible noise) says so in
    every line and checkpoint.
    """

    path: Path
    id: str
    durable: bool = True
    sign: checkpoint.Sign | None = None
    insecure: bool = False

    @classmethod
    def create(
        cls, path: Path, plan: Plan, *, run_id: str | None = None, **facts: Any
    ) -> "RunFolder":
        """A new run; FolderError where the name is taken or the place cannot be written."""
        if path.exists():
            raise FolderError(f"{path}: this run exists, expected --resume or another --name")
        run = cls(path, run_id or secrets.token_hex(8), insecure=bool(facts.get("insecure")))
        making = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            (making / "checkpoints").mkdir(parents=True)
            (making / "plan.toml").write_text(plan.to_toml(), encoding="utf-8")
            created = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"id": run.id, "plan": plan.digest, "created": created, **facts}
            (making / "run.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
            (making / "history.jsonl").touch()
            making.rename(path)
        except OSError as error:
            shutil.rmtree(making, ignore_errors=True)
            raise FolderError(f"{path}: expected a place to write a run ({error})") from None
        return run

    @classmethod
    def open(cls, path: Path, plan: Plan | None = None) -> "RunFolder":
        """A run to go on with; FolderError where it is none or was begun under another plan."""
        try:
            about = read_json(path / "run.json")
            run, digest = str(about["id"]), str(about["plan"])
        except (OSError, ValueError, KeyError, TypeError):
            raise FolderError(f"{path}: expected the folder of a run to resume") from None
        if plan is not None and plan.digest != digest:
            raise FolderError(f"{path}: this run has another plan, {digest}, got {plan.digest}")
        remove_stale(path, path / "checkpoints", path / "heads")
        return cls(path, run, insecure=bool(about.get("insecure")))

    @property
    def checkpoints(self) -> Path:
        """Where the rounds' checkpoints are."""
        return self.path / "checkpoints"

    def plan(self) -> Plan:
        """The resolved plan that the run was begun with."""
        try:
            return load_plan(self.path / "plan.toml")
        except PlanError as error:
            raise FolderError(f"{self.path / 'plan.toml'}: {error}") from None

    def facts(self) -> dict[str, Any]:
        """What run.json says of the run."""
        facts: dict[str, Any] = read_json(self.path / "run.json")
        return facts

    def write_round(
        self, arrays: Mapping[str, Any], plan: Plan, line: Mapping[str, Any], *, base: str = ""
    ) -> None:
        """The checkpoint, then the history's line, then the checkpoint's signature."""
        if self.insecure:
            line = {**line, "insecure": True}
        text = json.dumps(line, allow_nan=False)
        metadata = {
            "run": self.id,
            "round": str(line["round"]),
            "plan": plan.digest,
            "plan_json": plan.to_json(),
            "task": plan.task,
            "history": text,
        }
        if self.insecure:
            metadata["insecure"] = "true"
        if base:
            metadata["base"] = base
        path, sha256 = checkpoint.write(
            self.checkpoints, line["round"], dict(arrays), metadata, durable=self.durable
        )
        lines = self.path / "history.jsonl"
        with naming(lines), lines.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            if self.durable:
                os.fsync(file.fileno())
        if self.sign is not None:
            self.sign(path, sha256)
        self.keep(plan.operation.keep)

    def resume(self) -> tuple[Arrays, int] | None:
        """The arrays and the round of the last checkpoint; None before the first.

        Signs it where a kill came between the checkpoint and its signature.
        """
        last = checkpoint.latest(self.checkpoints)
        if last is None:
            return None
        arrays, metadata = checkpoint.read(last)
        if self.sign is not None and not last.with_name(f"{last.name}.sig").exists():
            self.sign(last)
        return arrays, int(metadata["round"])

    def keep(self, most: int | None) -> None:
        """Delete all checkpoints but the last `most`; the history keeps their rounds."""
        for number in checkpoint.numbers(self.checkpoints)[: -most if most is not None else 0]:
            path = checkpoint.path_of(self.checkpoints, number)
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.sig").unlink(missing_ok=True)

    def history(self) -> list[dict[str, Any]]:
        """The rounds that are complete, from their checkpoints; rewrites history.jsonl to match.

        Rounds whose checkpoints `keep` has deleted are in history.jsonl alone.
        """
        lines = self._deleted()
        for number in checkpoint.numbers(self.checkpoints):
            metadata = checkpoint.read_metadata(checkpoint.path_of(self.checkpoints, number))
            if metadata.get("run") != self.id:
                raise FolderError(f"{self.checkpoints}: round {number} belongs to another run")
            lines.append(metadata["history"])
        text = "".join(line + "\n" for line in lines)
        file = self.path / "history.jsonl"
        if not file.exists() or file.read_text(encoding="utf-8", errors="replace") != text:
            write_atomic(file, text.encode())
        return [json.loads(line) for line in lines]

    def _deleted(self) -> list[str]:
        """The lines of the rounds before the first checkpoint that is left."""
        first = next(iter(checkpoint.numbers(self.checkpoints)), 1)
        if first == 1:
            return []
        file = self.path / "history.jsonl"
        try:
            lines = file.read_text(encoding="utf-8").splitlines()[: first - 1]
            rounds = [json.loads(line)["round"] for line in lines]
        except (OSError, ValueError, KeyError, TypeError):
            rounds = []
        if rounds != list(range(1, first)):
            raise FolderError(f"{file}: must hold the rounds 1 to {first - 1}, and does not")
        return lines

    def summary(self) -> dict[str, Any] | None:
        """The summary of a run that has ended, else None."""
        try:
            summary: dict[str, Any] = json.loads((self.path / "summary.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace summary.json in one step."""
        text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
        write_atomic(self.path / "summary.json", text.encode())
