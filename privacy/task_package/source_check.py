"""What the source of a package does, read and not run: what is refused, what a person must judge.

A reading of source is no proof: code that is approved is trusted like the product itself. It makes
the honest package easy to read, and the crude attack fail early. What cannot be told from the text
is contained (reading and encoding) or examined (the model), or is the approver's to decide.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from privacy.printable import printable
from privacy.task_package.archive import SOURCE, Package
from privacy.task_package.manifest import Manifest

REQUIRED: Final = ("model", "read", "encode")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PLAIN: Final = _words(
    "abc array base64 bisect collections copy csv dataclasses datetime decimal enum fractions "
    "functools gzip hashlib heapq html io itertools json math numbers operator pathlib re "
    "statistics string struct textwrap typing unicodedata wave xml zipfile zlib numpy torch "
    "opacus scipy PIL pyarrow safetensors sklearn"
)
"""Modules that reading, encoding and models need; their sharp edges are refused one by one."""
_DANGEROUS: Final = _words(
    "os sys socket ssl subprocess multiprocessing threading asyncio ctypes importlib builtins "
    "pickle shelve marshal inspect gc signal time random http urllib requests client privacy "
    "server simulations flwr"
)
_BUILTINS: Final = _words(
    "eval exec compile __import__ globals locals vars delattr setattr breakpoint input exit "
    "quit memoryview"
)
_EDGES: Final = _words(
    "save hub multiprocessing distributed cpp_extension load_library load_inline package "
    "memmap ctypeslib f2py fromfile tofile savez savez_compressed savetxt remote jit _C "
    "serialization futures profiler monitor testing overrides unlink rmdir rename write_text "
    "write_bytes touch mkdir chmod symlink_to hardlink_to import_module system popen spawn "
    "fork"
)
"""Attributes of the allowed modules that load code, write files or start processes."""
_EDGES_OF: Final = {"torch": frozenset({"load", "save", "compile", "ops", "classes"})}
"""Further ones, whose names are harmless elsewhere."""
_OWN_DUNDERS: Final = _words(
    "__init__ __len__ __getitem__ __iter__ __next__ __call__ __repr__ __eq__ __hash__ "
    "__name__ __post_init__ __enter__ __exit__ __doc__ __version__"
)
_SETTING_UP: Final = ("__init__", "train", "reset_parameters", "__post_init__")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the source does: refused, or for the approver to judge."""

    refused: bool
    line: int
    text: str

    def __str__(self) -> str:
        return f"{SOURCE}:{self.line}: {self.text}"


def findings(package: Package, manifest: Manifest) -> tuple[Finding, ...]:
    """Everything that stands out in task.py, in the order of its lines."""
    source = package.source
    hidden = next(
        (
            (number, character)
            for number, line in enumerate(source.splitlines(), 1)
            for character in line
            if not (character.isprintable() or character == "\t")
        ),
        None,
    )
    if hidden is not None:
        number, character = hidden
        return (Finding(True, number, f"holds a hidden character, {printable(character)}"),)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", 1) or 1
        return (Finding(True, line, f"must be Python, got {printable(error)}"),)
    needed = {need.partition(";")[0].strip().split("[")[0] for need in manifest.needs}
    remarks = list(_reader(tree, {_module_of(name) for name in needed}))
    defined = {node.name: node.lineno for node in tree.body if isinstance(node, ast.FunctionDef)}
    remarks += [
        Finding(True, 1, f"must define the function {name}")
        for name in REQUIRED
        if name not in defined
    ]
    if manifest.kind == "values":
        remarks += [
            Finding(True, 1, f'must define the function {name} where kind = "values"')
            for name in ("loss", "metrics")
            if name not in defined
        ]
    return tuple(sorted(remarks, key=lambda one: (one.line, one.text)))


def imports(package: Package) -> tuple[str, ...]:
    """The modules that task.py imports, sorted; none where it is no Python."""
    try:
        tree = ast.parse(package.source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    names = {name for node in ast.walk(tree) for name in imported(node)}
    return tuple(sorted(names))


def _module_of(requirement: str) -> str:
    name = ""
    for character in requirement:
        if not (character.isalnum() or character in "-_."):
            break
        name += character
    return {"pillow": "PIL", "scikit-learn": "sklearn"}.get(name.lower(), name.replace("-", "_"))


def imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports; none where it is no import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "."]
    return []


def _reader(tree: ast.Module, needed: set[str]) -> Iterator[Finding]:
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        for name in imported(node):
            root = name.split(".")[0]
            if isinstance(node, ast.Import):
                for a in node.names:
                    modules[a.asname or a.name.split(".")[0]] = a.name.split(".")[0]
            if root in _DANGEROUS or name == ".":
                yield Finding(True, node.lineno, f"imports {printable(name)}")  # type: ignore[attr-defined]
            elif root not in PLAIN and root not in needed and root != "__future__":
                text = f"imports {printable(name)}, which task.toml does not list under needs"
                yield Finding(True, node.lineno, text)  # type: ignore[attr-defined]
            elif root not in PLAIN:
                yield Finding(False, node.lineno, f"imports {printable(name)}")  # type: ignore[attr-defined]
            for part in name.split(".")[1:]:
                if part in _EDGES or part.startswith("_"):
                    yield Finding(True, node.lineno, f"imports {printable(name)}")  # type: ignore[attr-defined]
            if isinstance(node, ast.ImportFrom):
                edges = _EDGES | _EDGES_OF.get(root, frozenset())
                for alias in node.names:
                    if root == "torch" and alias.name in ("nn", "fft"):
                        modules[alias.asname or alias.name] = root
                    if alias.name in edges or alias.name == "*" or alias.name.startswith("_"):
                        text = f"imports {printable(alias.name)} of {printable(name)}"
                        yield Finding(True, node.lineno, text)
        yield from _names(node)
    for node in ast.walk(tree):
        yield from _writes(node, modules)
        owner = node.value if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.Attribute) and isinstance(owner, ast.Name):
            edges = _EDGES_OF.get(modules.get(owner.id, ""), frozenset())
            if node.attr in edges:
                yield Finding(True, node.lineno, f"uses the attribute {node.attr}")
    yield from _state(tree)


def _names(node: ast.AST) -> Iterator[Finding]:
    """Names and attributes through which anything can be reached."""
    if isinstance(node, ast.Name) and node.id in _BUILTINS:
        yield Finding(True, node.lineno, f"uses {node.id}")
    if isinstance(node, ast.Name) and node.id.startswith("__") and node.id not in _OWN_DUNDERS:
        yield Finding(True, node.lineno, f"uses {printable(node.id)}")
    if isinstance(node, ast.Name) and node.id == "open":
        yield Finding(False, node.lineno, "opens files")
    if isinstance(node, ast.Attribute):
        if node.attr.startswith("__") and node.attr not in _OWN_DUNDERS:
            yield Finding(True, node.lineno, f"uses the attribute {printable(node.attr)}")
        elif node.attr in _EDGES:
            yield Finding(True, node.lineno, f"uses the attribute {node.attr}")
        elif node.attr in ("read_bytes", "read_text", "glob", "rglob", "iterdir"):
            yield Finding(False, node.lineno, f"reads files ({node.attr})")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        literal = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
        text = str(node.args[1].value) if literal else ""  # type: ignore[attr-defined]
        if not literal or text.startswith("_") or text in _EDGES | _BUILTINS:
            yield Finding(True, node.lineno, "uses getattr with a name that is not plain")
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                yield Finding(True, node.lineno, "uses allow_pickle")


def _writes(node: ast.AST, modules: Mapping[str, str]) -> Iterator[Finding]:
    """Assignments to what is not the package's own."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.Delete):
        targets = list(node.targets)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    for target in targets:
        for one in ast.walk(target):
            if isinstance(one, ast.Attribute):
                root = one.value
                while isinstance(root, ast.Attribute | ast.Subscript | ast.Call):
                    root = root.func if isinstance(root, ast.Call) else root.value
                if isinstance(root, ast.Name) and root.id in modules:
                    yield Finding(True, node.lineno, f"changes the module {printable(root.id)}")  # type: ignore[attr-defined]


def _state(tree: ast.Module) -> Iterator[Finding]:
    """What would be remembered from one row, batch or round to the next."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield Finding(True, node.lineno, f"keeps state ({type(node).__name__.lower()})")
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name not in _SETTING_UP:
                    yield from _assigned_to_self(method)


def _assigned_to_self(method: ast.FunctionDef) -> Iterator[Finding]:
    for node in ast.walk(method):
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        for target in targets:
            for one in ast.walk(target):
                if (
                    isinstance(one, ast.Attribute)
                    and isinstance(one.value, ast.Name)
                    and one.value.id == "self"
                ):
                    text = f"keeps state from batch to batch (self.{printable(one.attr)})"
                    yield Finding(True, node.lineno, text)
