"""A compiled step has the eager sums, leaves what it cannot do to the eager step, whole."""

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.layers import DPLSTM
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd import compiling
from client.dpsgd.clipping import BookKeeping
from client.dpsgd.training import train
from client.tasks.digits import task as digits
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.contract.plan import Plan

CLIP = 0.5


def row_loss(out: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(out.flatten(1), y.expand(-1, out[:1].numel()), reduction="none").sum(
        1
    )


@pytest.fixture(autouse=True)
def always_used(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where a machine is busy, a graph may seem slower than it is."""
    monkeypatch.setattr(compiling.timeit, "repeat", lambda *_, **__: [next(pace)])
    pace = iter(range(10**6, 0, -1))
    compiling._graphs.clear()
    yield
    compiling._graphs.clear()


class Both:
    """A model's sums, eager and compiled."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...], *, tokens: int = 0) -> None:
        self.model, self._shape, self._tokens = model, shape, tokens
        self._book = BookKeeping(model, clip=CLIP)
        x, y = self.rows(4)
        self._book.examine(x)
        self.add = compiling.compiled(self._book, model, x, y, row_loss)

    @property
    def is_compiled(self) -> bool:
        return isinstance(getattr(self.add, "__self__", None), compiling.Compiled)

    def rows(self, n: int) -> tuple[Tensor, Tensor]:
        if self._tokens:
            return torch.randint(0, self._tokens, (n, *self._shape)), torch.randn(n, 1)
        return torch.randn(n, *self._shape), torch.randn(n, 1)

    def agree(self, x: Tensor, y: Tensor) -> None:
        eager, ours = self._sums(self._book.accumulate, x, y), self.compiled(x, y)
        scale = sum(float(s.square().sum()) for s in eager) ** 0.5
        for s, expected in zip(ours, eager, strict=True):
            assert torch.allclose(s, expected, rtol=1e-5, atol=1e-5 * max(scale, 1e-3))

    def compiled(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return self._sums(self.add, x, y)

    def _sums(self, step: Callable[..., None], x: Tensor, y: Tensor) -> list[Tensor]:
        self.model.zero_grad()
        step(x, y, row_loss)
        return [p.grad.clone() for p in self.model.parameters() if p.grad is not None]


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))


def test_batches_of_every_size_have_the_eager_sums_with_and_without_broken_rows() -> None:
    both = Both(dense(), (5,))
    assert both.is_compiled

    @given(st.integers(0, 70), st.sampled_from([1e-3, 1.0, 1e3, 1e20]), st.booleans())
    @settings(max_examples=60, deadline=None)
    def agree(n: int, scale: float, broken: bool) -> None:
        x, y = both.rows(n)
        x *= scale
        if broken and n:
            x[n // 2, 0] = float("nan")
        both.agree(x, y)

    agree()
    with torch.no_grad():  # as a step does
        for p in both.model.parameters():
            p.mul_(0.5)
    both.agree(*both.rows(33))
    again = Both(dense(), (5,))
    assert len(compiling._graphs) == 1  # a round's fresh model finds the graph of the last one
    again.agree(*again.rows(40))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), (3, 4)),
        (nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv1d(4, 2, 2)), (2, 6)),
        (
            nn.Sequential(
                *(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.MaxPool2d(2)),
                *(nn.Conv2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(16, 2)),
            ),
            (1, 6, 6),
        ),
    ],
)
def test_sequences_and_images_have_the_eager_sums(model: nn.Module, shape: Any) -> None:
    both = Both(model, shape)
    assert both.is_compiled
    for n in (3, 16, 41, 200):
        both.agree(*both.rows(n))


@pytest.mark.slow
def test_no_record_moves_a_compiled_sum_by_more_than_the_clip() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    both = Both(model, (2, 4))
    assert both.is_compiled

    @given(st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 1e3, 1e9, 1e20, 1e38]))
    @settings(max_examples=100, deadline=None)
    def bounded(seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        x, y = both.rows(20)
        a = torch.randn(4) * scale
        x[7] = torch.stack([a, -a * (1 + 1e-6)])  # terms that nearly cancel
        y[7] *= scale
        others = torch.arange(20) != 7
        whole, rest = both.compiled(x, y), both.compiled(x[others], y[others])
        moved = sum(float((w - r).square().sum()) for w, r in zip(whole, rest, strict=True)) ** 0.5
        assert moved <= CLIP * (1 + 1e-5) + 1e-5

    bounded()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = DPLSTM(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).mean(1))


@pytest.mark.parametrize(
    ("model", "shape", "tokens"), [(Recurrent(), (4, 3), 0), (Text(), (5,), 7)]
)
def test_a_model_that_is_not_compiled_trains_eagerly_and_one_line_says_so(
    model: nn.Module, shape: Any, tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    both = Both(model, shape, tokens=tokens)
    assert not both.is_compiled
    both.agree(*both.rows(20))
    Both(copy.deepcopy(model), shape, tokens=tokens)
    (line,) = [one for one in caplog.records if one.name == "client.dpsgd.compiling"]
    assert line.levelno == logging.WARNING
    assert "training goes on eagerly" in line.getMessage()


def test_a_graph_with_other_sums_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def halved(values: Any, x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
        return [torch.zeros_like(v) for v in values.values()], torch.tensor(1.0)

    monkeypatch.setattr(compiling, "_made", lambda *_: (halved, 4096))
    both = Both(dense(), (5,))
    assert not both.is_compiled
    assert "not the eager ones" in caplog.text


def test_a_graph_that_fails_in_a_step_leaves_it_whole_to_the_eager_one() -> None:
    def failing(values: Any, x: Tensor, y: Tensor) -> Any:
        raise RuntimeError("a row: 1.234")

    both = Both(Recurrent(), (4, 3))
    both.add = compiling.Compiled(both._book, both.model, failing, 4096).accumulate
    both.agree(*both.rows(20))


def test_nothing_is_compiled_into_a_folder_that_others_can_write_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "tacit" / "inductor").mkdir(parents=True)
    (tmp_path / "tacit" / "inductor").chmod(0o777)
    assert not Both(dense(), (5,)).is_compiled
    assert "is not private" in caplog.text


@pytest.mark.slow
def test_no_code_lies_in_the_folder_that_all_users_share(tmp_path: Path) -> None:
    program = (
        "import torch; from torch import nn; from client.dpsgd.clipping import BookKeeping;"
        "from client.dpsgd.compiling import compiled; model = nn.Linear(5, 1);"
        "book = BookKeeping(model, clip=1.0); x, y = torch.randn(2, 5), torch.randn(2, 1);"
        "loss = lambda out, y: ((out - y) ** 2).sum(1); book.examine(x);"
        "compiled(book, model, x, y, loss)"
    )
    shared, own = tmp_path / "shared", tmp_path / "own"
    shared.mkdir()
    places = {"TMPDIR": str(shared), "XDG_CACHE_HOME": str(own)}
    subprocess.run([sys.executable, "-c", program], env=os.environ | places, check=True)
    assert list((own / "tacit" / "inductor").rglob("*.so"))
    assert not [path for path in shared.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_compiled_round_is_the_eager_round() -> None:
    task, rows = digits(), Rows(torch.randn(60, 64), torch.randint(0, 10, (60,)))
    plan = Plan(
        task="digits", rounds=1, rate=1.0, rows=60, lr=0.1, clip=1.0, sigma=0.0, delta=1e-5, steps=3
    )
    event = Event("record", 0.0, 1.0, 3)
    eager, ours = (
        train(task.model(0), rows, task, plan, site="a", event=event, round=1, compile=compile)
        for compile in (False, True)
    )
    assert any(compiling._graphs.values())
    for name, value in eager.update.items():
        assert ours.update[name] == pytest.approx(value, rel=1e-4, abs=1e-6)
