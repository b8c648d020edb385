"""The clipped sum of a batch as one compiled graph (torch.compile), where a site asks for it.

The graph is traced from the very code of the eager step, for batches of any size, and is used once
it has given the eager sums of made-up rows. What cannot be compiled, batches of unusual sizes and
those with a broken row are left, whole, to the eager step.
"""

import logging
import math
import os
import timeit
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import Any, Final

import torch
from opacus.layers.dp_rnn import DPRNNBase
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from client.dpsgd.clipped_sum import sum_of
from client.dpsgd.clipping import BookKeeping, at_most, made_up
from client.dpsgd.per_sample import Sampled
from privacy.mechanism.native import private_cache

Loss = Callable[[Tensor, Tensor], Tensor]
Graph = Callable[[Mapping[str, Tensor], Tensor, Tensor], tuple[list[Tensor], Tensor]]
"""(parameters and buffers, x, y) -> (clipped sums of the trained parameters, largest norm^2)."""

_LEAST: Final = 16
_MOST: Final = 4096  # torch compiles for batches up to this, and below 16 for convolutions anew
_OPTIONS: Final[dict[str, str | int | bool | Callable[..., Any]]] = {
    "compile_threads": 1,  # a pool of processes would outlive the compilation
    "cpp_cache_precompile_headers": False,  # they lie in the shared temporary folder
}
_TRIED: Final = 64
_KEPT: Final = 8
_log = logging.getLogger(__name__)
_graphs: dict[Any, tuple[Graph, int] | None] = {}


class NotCompiled(RuntimeError):
    """A step that is left to the eager code, and why."""


def compiled(
    book: BookKeeping, model: nn.Module, x: Tensor, y: Tensor, loss: Loss
) -> Callable[[Tensor, Tensor, Loss], None]:
    """`book.accumulate`, by a compiled graph where there can be one; no value of x, y is looked at.

    Graphs are kept for the process: a round's fresh model of a known structure finds its own.
    """
    key = _structure(book, model, x, y, loss)
    first = key not in _graphs
    if first:
        while len(_graphs) >= _KEPT:
            del _graphs[next(iter(_graphs))]
        _graphs[key] = _made(book, model, x, y, loss)
    made = _graphs[key]
    if made is None:
        return book.accumulate
    step = Compiled(book, model, *made)
    if problem := step.problem(x, y, loss, first=first):
        _log.warning("compile: %s; training goes on eagerly", problem)
        _graphs[key] = None
        return book.accumulate
    return step.accumulate


class Compiled:
    """A graph and the model whose sums it makes."""

    def __init__(self, book: BookKeeping, model: nn.Module, graph: Graph, most: int) -> None:
        self._book, self._graph, self._most = book, graph, most
        self._values = _values(model)
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def accumulate(self, x: Tensor, y: Tensor, loss: Loss) -> None:
        """Add the batch's clipped sum to `p.grad`: all of it by the graph, or all of it eagerly."""
        sums = self._sums(x, y) if _LEAST <= len(x) <= self._most else None
        if sums is None:
            self._book.accumulate(x, y, loss)
            return
        with torch.no_grad():
            for p, s in zip(self._trained, sums, strict=True):
                sum_of(p).add_(s)

    def _sums(self, x: Tensor, y: Tensor) -> list[Tensor] | None:
        """None where a row's gradient is not finite: its factor is to be 0, and 0 * NaN is NaN."""
        try:
            with torch.no_grad():
                sums, largest = self._graph(self._values, x, y)
        except RuntimeError as error:  # its text may hold a row
            _log.warning("compile: %s in a step; it goes on eagerly", type(error).__name__)
            self._most = 0
            return None
        return sums if math.isfinite(largest) else None

    def problem(self, x: Tensor, y: Tensor, loss: Loss, *, first: bool) -> str:
        """Why the graph is not to be used, by made-up rows: its sums and, at `first`, its pace."""
        if not self.agrees(x, y, loss):
            return "the compiled sums are not the eager ones"
        if not first:
            return ""
        rows, labels = made_up(_TRIED, x), _labels(_TRIED, y)
        with _fresh(self._trained):
            eager, ours = (
                min(timeit.repeat(partial(step, rows, labels, loss), number=1, repeat=4))
                for step in (self._book.accumulate, self.accumulate)
            )
        return "" if ours < eager else f"slower than eager ({ours:.2g} s against {eager:.2g} s)"

    def agrees(self, x: Tensor, y: Tensor, loss: Loss) -> bool:
        """Whether made-up rows give the eager sums, and a broken one among them is seen."""
        rows, labels = made_up(_LEAST + 3, x), _labels(_LEAST + 3, y)
        sums = self._sums(rows, labels)
        if sums is None:
            return False
        with _fresh(self._trained):
            self._book.accumulate(rows, labels, loss)
            right = [p.grad for p in self._trained if p.grad is not None]
            bound = 1e-5 * math.sqrt(sum(float(s.square().sum()) for s in right)) + 1e-7
            if not all(
                torch.allclose(ours, s, rtol=1e-4, atol=bound)
                for ours, s in zip(sums, right, strict=True)
            ):
                return False
        if rows.is_floating_point():
            rows[1] = math.nan
            return self._sums(rows, labels) is None
        return True


class _Step(nn.Module):
    """From a batch to its clipped sums, by the eager code, for tracing."""

    def __init__(self, book: BookKeeping, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.most = model, _MOST
        self._book, self._loss = [book], loss  # in a list: no module of this one
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]

    def forward(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
        (book,) = self._book
        parts, square = book.parts(x, y, self._loss)
        with torch.no_grad():
            factors = at_most(square, book.clip)
            for part in parts:
                if isinstance(part, Sampled):
                    self.most = min(self.most, part.most)
                part.add(factors, None)
            return [sum_of(attrgetter(name)(self.model)) for name in self._names], square.max()


def _made(
    book: BookKeeping, model: nn.Module, x: Tensor, y: Tensor, loss: Loss
) -> tuple[Graph, int] | None:
    """The compiled graph and the largest batch that it is for; None, and a log line, where none."""
    step = _Step(book, model, loss)
    rows, labels = made_up(_TRIED, x), _labels(_TRIED, y)
    try:
        if any(isinstance(module, DPRNNBase) for module in model.modules()):
            raise NotCompiled("a recurrent network would be unrolled")
        if book.precision != "float32":
            raise NotCompiled("only float32 can be compared with the eager sums")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private_cache("inductor"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = _traced(step, _values(model), rows, labels)
            graph = torch.compile(traced, fullgraph=True, options=_OPTIONS)
            for batch in (rows, labels):
                torch._dynamo.mark_dynamic(batch, 0, min=_LEAST, max=_MOST)
            with torch.no_grad():
                graph(_values(model), rows, labels)
    except Exception as error:  # noqa: BLE001 - a compiler's, over made-up rows alone
        _log.warning(
            "compile: not this model (%s: %.200s); training goes on eagerly",
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return None
    return graph, step.most


def _traced(
    step: _Step, values: Mapping[str, Tensor], x: Tensor, y: Tensor
) -> torch.fx.GraphModule:
    """The step as a graph in which the number of rows is a symbol."""
    mode = FakeTensorMode(shape_env=ShapeEnv())

    def batch(given: Tensor) -> Tensor:
        sizes = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * (given.dim() - 1)]
        return mode.from_tensor(given, symbolic_context=StatelessSymbolicContext(sizes))

    trained = {name for name, p in step.model.named_parameters() if p.requires_grad}
    fakes = {
        name: mode.from_tensor(value, static_shapes=True).requires_grad_(name in trained)
        for name, value in values.items()
    }

    def sums(values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Any:
        named = {f"model.{name}": value for name, value in values.items()}
        return torch.func.functional_call(step, named, (x, y))

    with mode:
        return make_fx(sums, _IN_PYTHON)(fakes, batch(x), batch(y))


def _padded(x: Tensor, pad: list[int], value: float = 0.0) -> Tensor:
    for i in range(len(pad) // 2):
        at = x.dim() - 1 - i
        sides = [
            x.new_full((*x.shape[:at], n, *x.shape[at + 1 :]), value) for n in pad[2 * i :][:2]
        ]
        x = torch.cat([sides[0], x, sides[1]], at)
    return x


_IN_PYTHON: Final[
    dict[Any, Callable[..., Any]]
] = {  # for these torch's own code wants a number of rows
    **get_decompositions([torch.ops.aten.im2col]),
    torch.ops.aten.constant_pad_nd.default: _padded,
}


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, as the model holds them now."""
    return {name: p.detach() for name, p in (*model.named_parameters(), *model.named_buffers())}


def _labels(rows: int, like: Tensor) -> Tensor:
    """Zeros: a class of every classification, and in the middle of a regression's bounds."""
    return like.new_zeros(rows, *like.shape[1:])


@contextmanager
def _fresh(trained: list[nn.Parameter]) -> Iterator[None]:
    """Sums made meanwhile are forgotten."""
    before = [p.grad for p in trained]
    for p in trained:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in zip(trained, before, strict=True):
            p.grad = grad


def _structure(book: BookKeeping, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Any:
    """What a graph depends on but for the weights; `agrees` catches what this does not tell."""
    modules = tuple((name, type(m), m.extra_repr()) for name, m in model.named_modules())
    values = tuple(
        (name, p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()
    )
    batch = tuple((t.shape[1:], t.dtype, t.device) for t in (x, y))
    return modules, values, batch, book.clip, book.precision, loss
