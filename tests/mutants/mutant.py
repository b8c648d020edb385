"""A mutation: one place of one file changed, and the tests that should notice."""

import tomllib
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLANTED = Path(__file__).with_name("planted.toml")
MORE = {
    "privacy/accounting": ("privacy/accounting", "privacy/contract/test_plan.py"),
    "privacy/contract": ("privacy/contract", "client/test_app.py"),
    "privacy/ledger": ("privacy/ledger", "client/test_app.py"),
    "privacy/mechanism": ("privacy/mechanism", "client/dpsgd/test_training.py"),
    "client": ("client/test_app.py", "client/test_unreadable_rows.py", "client/test_proposal.py"),
    "client/dpsgd": ("client/dpsgd", "client/test_app.py"),
    "client/dpsgd/examination": ("client/dpsgd",),
    "server/rounds": ("server/rounds",),
}
"""By a module's folder: the tests that exercise it beside those of its own name."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old` stands once in `file`; with `new` in its place one of `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied_to(self, text: str) -> str:
        """The file's text with the mutation; ValueError unless `old` stands in it exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.old!r} must stand once in {self.file}, "
                f"got {text.count(self.old)} times"
            )
        return text.replace(self.old, self.new)

    def difference(self) -> str:
        """The changed lines, each indented."""
        before = (ROOT / self.file).read_text(encoding="utf-8")
        lines = unified_diff(before.splitlines(), self.applied_to(before).splitlines(), n=0)
        return "\n".join(f"    {line}" for line in list(lines)[2:])


def planted() -> tuple[Mutant, ...]:
    """The mutations chosen by hand, with the tests named there, else those of `covering`."""
    table = tomllib.loads(PLANTED.read_text(encoding="utf-8"))
    return tuple(
        Mutant(**one | {"tests": tuple(one.get("tests") or covering(one["file"]))})
        for one in table["mutant"]
    )


def covering(name: str) -> tuple[str, ...]:
    """The test files that concern a module, nearest first.

    Those of its own name, then those beside them and of `MORE` that import it, then the others.
    """
    path = Path(name)
    module = ".".join(path.with_suffix("").parts)
    folder = path.parent.as_posix()
    nearest = sorted((ROOT / "tests" / folder).glob(f"test_{path.stem}*.py"))
    beside = [file for one in MORE[folder] for file in _files(ROOT / "tests" / one)]
    spelt = (module, f"from {module.rpartition('.')[0]} import {path.stem}\n")
    importing = [
        file for file in beside if any(one in file.read_text(encoding="utf-8") for one in spelt)
    ]
    files = dict.fromkeys((*nearest, *importing, *beside))
    return tuple(file.relative_to(ROOT).as_posix() for file in files)


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("test_*.py")) if path.is_dir() else [path]
