"""The part of task.py that reading and encoding need: rows are read without the model's libraries.

PyTorch takes seconds to load, and reading is done in a process of its own.
"""

import ast
from typing import Final

from privacy.task_package.archive import Package
from privacy.task_package.source_check import PLAIN, imported

READING: Final = ("read", "encode")
_HEAVY: Final = ("torch", "opacus")


def reading_part(package: Package) -> ast.Module:
    """The statements of task.py that `read` and `encode` need, on the lines where they stand.

    Functions and classes that nothing needed names are left out, and then the imports of PyTorch
    that nothing names either. All else that stands at the top is kept, with whatever it names.
    """
    tree = ast.parse(package.source)
    waiting, needed_parts, needed = list(tree.body), set[int](), set(READING)
    while more := [one for one in waiting if not (names := _left_out(one)) or names & needed]:
        needed_parts |= {id(one) for one in more}
        for one in more:
            needed |= {node.id for node in ast.walk(one) if isinstance(node, ast.Name)}
        waiting = [one for one in waiting if id(one) not in needed_parts]
    return ast.Module([one for one in tree.body if id(one) in needed_parts], [])


def loads_torch(part: ast.Module) -> bool:
    """Whether these statements may load PyTorch, by themselves or through what they import."""
    names = [name for node in ast.walk(part) for name in imported(node)]
    return any(
        name.split(".")[0] not in PLAIN or any(heavy in name.split(".") for heavy in _HEAVY)
        for name in names
        if name != "__future__"
    )


def _left_out(statement: ast.stmt) -> set[str]:
    """The names of a statement that can be left out; none where it must stay."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef) and not statement.decorator_list:
        return {statement.name}
    if not all(name.split(".")[0] in _HEAVY for name in imported(statement) or ["."]):
        return set()
    if isinstance(statement, ast.Import):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    return set()
