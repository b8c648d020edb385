"""Names of other people's libraries that are not theirs to promise, as our code uses them.

A name is private where its module is (`flwr.supercore`, `torch._decomp`), or where it begins with
an underscore and none of our own files defines it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PRIVATE = (
    "flwr.app.message",
    "flwr.clientapp.typing",
    "flwr.common",
    "flwr.proto",
    "flwr.server",
    "flwr.supercore",
    "flwr.superlink",
    "flwr.supernode",
    "opacus.grad_sample.functorch",
    "opacus.layers.dp_rnn",
)
FOREIGN = {"flwr", "opacus", "torch", "dp_accounting", "starlette", "ray", "captum"}


def private_names(files: list[Path]) -> set[str]:
    """`module.name` of each private import, and `._name` of each private attribute."""
    trees = [list(ast.walk(ast.parse(path.read_text(encoding="utf-8")))) for path in files]
    ours = {name for tree in trees for name in _defined(tree)} | {"_exit"}  # os._exit is public
    return {name for tree in trees for name in (*_imports(tree), *_attributes(tree, ours))}


def _imports(tree: list[ast.AST]) -> Iterator[str]:
    for node in tree:
        if isinstance(node, ast.ImportFrom) and node.module:
            pairs = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            pairs = [(alias.name, "") for alias in node.names]
        else:
            continue
        for module, name in pairs:
            parts = f"{module}.{name}".rstrip(".").split(".")
            hidden = any(part.startswith("_") for part in parts[1:])
            within = any(module == one or module.startswith(f"{one}.") for one in PRIVATE)
            if parts[0] in FOREIGN and (hidden or within):
                yield ".".join(parts)


def _attributes(tree: list[ast.AST], ours: set[str]) -> Iterator[str]:
    """`x._name`, `getattr(x, "_name")`, `x.__dict__["_name"]`, `x.__dict__.update(_name=...)`."""
    for node in tree:
        names: list[object] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            names = [node.slice.value] if _is_dict(node.value) else []
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id.endswith("attr"):  # getattr and so on
                names = [getattr(node.args[1], "value", "")] if len(node.args) > 1 else []
            elif isinstance(function, ast.Attribute) and function.attr == "update":
                names = [keyword.arg for keyword in node.keywords if _is_dict(function.value)]
        for name in names:
            if isinstance(name, str) and re.match(r"_[^_]", name) and name not in ours:
                yield f".{name}"


def _is_dict(value: ast.expr) -> bool:
    return isinstance(value, ast.Attribute) and value.attr == "__dict__"


def _defined(tree: list[ast.AST]) -> Iterator[str]:
    """Functions, classes, assigned names and attributes of self."""
    for node in tree:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        ):
            yield node.attr
