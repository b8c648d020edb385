"""The house keeps its walls: who imports what, who knows private names, how long files are."""

import ast
import graphlib
import importlib
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("privacy", "client", "server", "simulations")
MAY_IMPORT = {
    "privacy": set(),
    "client": {"privacy"},
    "server": {"privacy"},
    "simulations": {"privacy", "client", "server"},
}
NEVER = {
    "privacy": {"torch", "opacus", "flwr"},
    "client": set(),
    "server": {"torch", "opacus"},
    "simulations": set(),
}
ONLY_IN = {
    "onnxruntime": {"client/inference/onnx_runtime.py"},  # with its telemetry off
    "pyrage": {"privacy/archive.py"},
    "dp_accounting": {
        f"privacy/accounting/{name}.py" for name in ("accountants", "mixtures", "vectorised")
    },
    "cryptography": {
        "privacy/identity/keys.py",
        "privacy/identity/certificates.py",
        "privacy/mechanism/noise.py",
        "privacy/secagg/masks.py",
    },
}
PRIVATE_FLOWER = ("flwr.supercore", "flwr.superlink", "flwr.supernode", "flwr.common", "flwr.proto")
MAY_KNOW_FLOWER = {
    "server/fleet/superlink.py",
    "server/fleet/flower_run.py",
    "client/agent/connection.py",
    "client/agent/link.py",
    "simulations/grid.py",
}
COMPOSITION_ROOT = "server/evaluation.py"
LAZY_CLIENT = {COMPOSITION_ROOT, "server/relay/upward.py"}  # a relay is a party as well


def sources(package: str) -> Iterator[Path]:
    made = ROOT / "benchmarks" / "results"  # with whole environments of peers
    yield from sorted(p for p in (ROOT / package).rglob("*.py") if made not in p.parents)


@dataclass(frozen=True)
class Seen:
    """What a file's syntax tree shows: (module, name or "", at the top level) and assertions."""

    imported: tuple[tuple[str, str, bool], ...]
    asserts: bool


@cache
def seen(path: Path) -> Seen:
    """A file is parsed once for all laws."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    imported: list[tuple[str, str, bool]] = []
    asserts = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += ((alias.name, "", id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            imported += ((node.module or "", name.name, id(node) in top) for name in node.names)
        asserts |= isinstance(node, ast.Assert)
    return Seen(tuple(imported), asserts)


def imports(path: Path) -> set[tuple[str, bool]]:
    """Every imported module of a file, and whether it stands at the top level."""
    return {(module, at_top) for module, _, at_top in seen(path).imported}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_its_trust_boundary_allows(package: str) -> None:
    wrong = []
    for path in sources(package):
        where = path.relative_to(ROOT).as_posix()
        for module, at_top in imports(path):
            root = module.split(".")[0]
            if root in PACKAGES and root != package and root not in MAY_IMPORT[package]:
                lazy = where in LAZY_CLIENT and root == "client" and not at_top
                if not lazy:
                    wrong.append(f"{where} imports {module}")
            if root in NEVER[package] and not (where == COMPOSITION_ROOT and not at_top):
                wrong.append(f"{where} imports {module}")
    assert not wrong


def test_a_library_with_sharp_edges_is_known_by_its_own_files_only() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for package in PACKAGES
        for path in sources(package)
        for module, _ in imports(path)
        if module.split(".")[0] in ONLY_IN
        and path.relative_to(ROOT).as_posix() not in ONLY_IN[module.split(".")[0]]
    ]
    assert not wrong


def test_flowers_private_names_are_known_in_one_file_a_side() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for package in PACKAGES
        for path in sources(package)
        for module, _ in imports(path)
        if module.startswith(PRIVATE_FLOWER)
        and path.relative_to(ROOT).as_posix() not in MAY_KNOW_FLOWER
    ]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_that_python_finds_is_the_one_in_this_tree(package: str) -> None:
    found = importlib.import_module(package).__file__
    assert found is not None
    assert Path(found).resolve().is_relative_to(ROOT)


def test_no_helper_drawer_and_no_file_over_400_lines() -> None:
    drawers = {"utils", "common", "config", "cli", "helpers", "misc"}
    files = [p for package in (*PACKAGES, "tests", "benchmarks") for p in sources(package)]
    assert not [p for p in files if p.stem in drawers or p.parent.name in drawers]
    assert not [p for p in files if len(p.read_text(encoding="utf-8").splitlines()) > 400]


def test_no_folder_has_more_than_12_modules_and_each_says_what_it_is_for() -> None:
    folders = {path.parent for package in PACKAGES for path in sources(package)}
    crowded = {
        f.relative_to(ROOT).as_posix(): n
        for f in folders
        if (n := len([p for p in f.glob("*.py") if p.name not in ("__init__.py", "__main__.py")]))
        > 12
    }
    assert not crowded
    assert not [
        f for f in folders if not ast.get_docstring(ast.parse((f / "__init__.py").read_text()))
    ]


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count too: a circle is one, whenever it is run."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sources(package)
    }
    order = graphlib.TopologicalSorter(
        {
            module: {name for name in imported_names(path) if name in modules and name != module}
            for module, path in modules.items()
        }
    )
    order.prepare()  # raises CycleError, which names the modules


def imported_names(path: Path) -> Iterator[str]:
    """Modules, and names that may be modules of a package."""
    for module, name, _ in seen(path).imported:
        yield module
        if name:
            yield f"{module}.{name}"


def test_no_assertion_stands_in_the_product() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in sources(package)
        if seen(path).asserts
    ]
    assert not wrong


DEVELOPING = ("dev", "docs")
UNIMPORTED = {"uvloop", "tensorboardx", "mlflow-skinny"}
"""Declared for what it does once it is there, and imported by the library that looks for it, or by
name where it is asked for (server/tracking.py)."""


def declared() -> dict[str, set[str]]:
    """The distributions that pyproject.toml names, by extra; "" are those of every install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: {_canonical(one) for one in some} for extra, some in wanted.items()}


def _canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


@cache
def distributions() -> Mapping[str, list[str]]:
    """Whose each importable name is; of hundreds of installed ones, so that it is asked once."""
    return packages_distributions()


def imported(*packages: str) -> dict[str, set[str]]:
    """The distributions that packages import, with the files; a name of none stays itself.

    Of a namespace that several share, those that are declared: `google` is whose is installed.
    """
    known, stated = distributions(), {one for some in declared().values() for one in some}
    found: dict[str, set[str]] = {}
    for path in (path for package in packages for path in sources(package)):
        for module, _ in imports(path):
            root = module.split(".")[0]
            if root not in sys.stdlib_module_names and root not in (*PACKAGES, "tests"):
                shared = known.get(root, [root])
                for distribution in [d for d in shared if _canonical(d) in stated] or shared:
                    where = path.relative_to(ROOT).as_posix()
                    found.setdefault(_canonical(distribution), set()).add(where)
    return found


@pytest.mark.long
def test_every_import_is_declared_and_everything_declared_is_imported() -> None:
    wanted, used = declared(), imported(*PACKAGES)
    product = {one for extra, some in wanted.items() if extra not in DEVELOPING for one in some}
    assert not {name: where for name, where in used.items() if name not in product}
    assert not product - set(used) - UNIMPORTED
    tests = {name: where for name, where in imported("tests").items() if name not in product}
    assert set(tests) <= wanted["dev"], tests
