"""Random single mutations by the syntax tree: comparisons, arithmetic, constants, dropped lines."""

import ast
import random
from collections.abc import Iterator

from tests.mutants.mutant import ROOT, Mutant, covering

PATH = (
    "privacy/accounting/accountants.py",
    "privacy/accounting/epsilon.py",
    "privacy/accounting/events.py",
    "privacy/accounting/rounding.py",
    "privacy/accounting/segments.py",
    "privacy/contract/decision.py",
    "privacy/contract/outputs.py",
    "privacy/contract/pilots.py",
    "privacy/contract/plan.py",
    "privacy/contract/policy.py",
    "privacy/ledger/anchor.py",
    "privacy/ledger/chain.py",
    "privacy/ledger/entries.py",
    "privacy/ledger/heads.py",
    "privacy/ledger/ledger.py",
    "privacy/ledger/totals.py",
    "privacy/mechanism/device.py",
    "privacy/mechanism/exact.py",
    "privacy/mechanism/gaussian.py",
    "privacy/mechanism/noise.py",
    "privacy/mechanism/sensitivity.py",
    "client/app.py",
    "client/judgement.py",
    "client/release.py",
    "client/reply.py",
    "client/round_request.py",
    "client/secure_round.py",
    "client/dpsgd/clipped_sum.py",
    "client/dpsgd/clipping.py",
    "client/dpsgd/examination/apart.py",
    "client/dpsgd/examination/separation.py",
    "client/dpsgd/matrix_products.py",
    "client/dpsgd/people.py",
    "client/dpsgd/per_sample.py",
    "client/dpsgd/private_metrics.py",
    "client/dpsgd/training.py",
    "server/rounds/aggregation.py",
)
"""The privacy path: what a guarantee rests on."""

_COMPARE = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_ARITHMETIC = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*"}


def drawn(count: int, seed: int) -> tuple[Mutant, ...]:
    """`count` mutations of the privacy path, at most one a line, the same for the same seed."""
    source = random.Random(seed)
    every = [
        mutant
        for name in PATH
        if (ROOT / name).exists()
        for mutant in _mutants(name, (ROOT / name).read_text(encoding="utf-8"), source)
    ]
    source.shuffle(every)
    return tuple(every[:count])


def _mutants(name: str, text: str, source: random.Random) -> Iterator[Mutant]:
    lines = text.splitlines(keepends=True)
    by_line: dict[int, list[str]] = {}
    for node in _nodes(ast.parse(text)):
        for new in _changes(node, text):
            start, end = _span(node, lines)
            by_line.setdefault(node.lineno, []).append(text[:start] + new + text[end:])
    for line, changed in sorted(by_line.items()):
        choice = source.choice(changed)
        if choice == text:
            continue
        yield Mutant(f"{name}:{line}", name, text, choice, covering(name))


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that decide something: no decorator's options, no text of an error."""
    yield node
    for name, value in ast.iter_fields(node):
        if name == "decorator_list" or (isinstance(node, ast.Raise) and name == "exc"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr):
                yield from _nodes(child)


def _changes(node: ast.AST, text: str) -> Iterator[str]:
    """Other spellings of a node that mean something else."""
    match node:
        case ast.Compare(ops=[op], left=left, comparators=[right]) if type(op) in _COMPARE:
            yield f"({ast.unparse(left)} {_COMPARE[type(op)]} {ast.unparse(right)})"
        case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
            if not isinstance(left, ast.Constant) or not isinstance(left.value, str):
                yield f"(({ast.unparse(left)}) {_ARITHMETIC[type(op)]} ({ast.unparse(right)}))"
        case ast.BoolOp(op=op, values=[first, *rest]):
            word = " or " if isinstance(op, ast.And) else " and "
            yield "(" + word.join(f"({ast.unparse(v)})" for v in (first, *rest)) + ")"
            yield f"({ast.unparse(rest[-1])})"
        case ast.Constant(value=bool() as value):
            yield str(not value)
        case ast.Constant(value=int() | float() as value):
            yield f"({value!r} + 1)"
        case ast.Raise():
            yield "pass"
        case ast.Expr(value=ast.Call()):
            yield "pass"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield f"({ast.unparse(operand)})"
        case ast.Call(func=ast.Name(id="min" | "max"), args=[first, _, *_]):
            yield f"({ast.unparse(first)})"
        case _:
            return


def _span(node: ast.AST, lines: list[str]) -> tuple[int, int]:
    """A node's first and last place in the text."""

    def place(line: int, column: int) -> int:
        before = sum(len(one) for one in lines[: line - 1])
        return before + len(lines[line - 1].encode()[:column].decode())

    start = place(node.lineno, node.col_offset)  # type: ignore[attr-defined]
    end = place(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
    return start, end
