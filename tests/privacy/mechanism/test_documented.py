"""docs/randomness.md names its code: every name, file and test that it names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs/randomness.md").read_text(encoding="utf-8")
CODE = [
    path
    for folder in ("privacy/mechanism", "privacy/secagg", "client/dpsgd", "server/rounds")
    for path in sorted((ROOT / folder).glob("*.py"))
]
QUOTED = re.findall(r"`([^`\n]+)`", TEXT)


def defined(path: Path) -> set[str]:
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


BY_MODULE: dict[str, set[str]] = {}
for code in CODE:
    BY_MODULE.setdefault(code.stem, set()).update(defined(code))
C_CODE = [path.read_text(encoding="utf-8") for path in (ROOT / "privacy/mechanism").glob("*.c*")]
MACROS = set[str]().union(*(re.findall(r"^#define (\w+)", text, re.M) for text in C_CODE))
EVERY = MACROS.union(*BY_MODULE.values())


def test_every_name_of_a_module_is_defined_in_it() -> None:
    named = [
        (module, name)
        for text in QUOTED
        for module, name in re.findall(r"^(\w+)\.(\w+)(?:\(.*\))?$", text)
        if module in BY_MODULE and name not in ("py", "c", "cu")
    ]
    assert len(named) > 15
    assert [f"{m}.{name}" for m, name in named if name not in BY_MODULE[m]] == []


def test_every_constant_is_defined_somewhere() -> None:
    constants = [text for text in QUOTED if re.fullmatch(r"_?[A-Z][A-Z_]+", text)]
    assert "NORMS" in constants
    assert [name for name in constants if name not in EVERY] == []


def test_every_file_and_test_is_there() -> None:
    files = [text for text in QUOTED if "/" in text and text.endswith(".py")]
    assert len(files) > 8
    assert [name for name in files if not (ROOT / name).exists()] == []
    tests = [text for text in QUOTED if re.fullmatch(r"test_\w+", text)]
    assert tests
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")
    )
    assert [name for name in tests if f"def {name}(" not in source] == []


def test_every_release_is_listed() -> None:
    callers = {
        path.relative_to(ROOT).as_posix()
        for folder in ("privacy", "client", "server", "simulations")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"noise\.privatise(_on)?\(", path.read_text(encoding="utf-8"))
    }
    callers -= {"client/audit/conformance.py"}  # draws for its own eyes, of no data
    assert [name for name in sorted(callers) if f"`{name}`" not in TEXT] == []
