"""A mutation: one place of one file changed, and the tests that should notice."""

import tomllib
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLANTED = Path(__file__).with_name("planted.toml")


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
    """The mutations chosen by hand."""
    table = tomllib.loads(PLANTED.read_text(encoding="utf-8"))
    return tuple(Mutant(**one | {"tests": tuple(one["tests"])}) for one in table["mutant"])
