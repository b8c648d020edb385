"""Models and losses that mix examples are refused end to end, before a step."""

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from opacus.layers import DPLSTM
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd.examination import separation
from client.dpsgd.per_sample import ModelError
from client.tasks.rows import Rows
from tests.support.small_models import (
    WIDTH,
    WORDS,
    Forward,
    InEval,
    Made,
    cross_entropy,
    data,
    head,
    trained,
)


def before(run: Forward, **parts: Any) -> nn.Module:
    return nn.Sequential(Made(run, **parts), head())


class HandNorm(nn.Module):
    """A batch normalisation written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x - self.mean
        self.mean.mul_(0.9).add_(0.1 * x.mean(0).detach())
        return x - x.mean(0)


class Remembers(nn.Module):
    """A state that no buffer holds."""

    def __init__(self, into: str) -> None:
        super().__init__()
        self.into, self.last, self.bank = into, torch.zeros(()), cast(list[Tensor], [])

    def forward(self, x: Tensor) -> Tensor:
        if self.into == "attribute":
            out = x - self.last
            self.last = x.mean(0).detach() / 2
            return out
        out = x + torch.stack(self.bank[-3:]).mean(0) if self.bank else x
        self.bank.append(x[0].detach())
        return out


def reordered(order: Callable[[Tensor], Tensor]) -> nn.Module:
    """Rows are moved, pass a layer, and are put back: each output row depends on its input's."""

    def run(m: Any, x: Tensor) -> Tensor:
        at = order(x)
        return cast(Tensor, m.b(m.a(x[at]).relu()[at.argsort()]))

    return Made(run, a=nn.Linear(WIDTH, 16), b=nn.Linear(16, 2))


def by_length(m: Any, x: Tensor) -> Tensor:
    at = (x > 0).sum(1).argsort()
    return cast(Tensor, m.h(m.e(x[at]).mean(1)[at.argsort()]))


class Counts(nn.Module):
    """Mixes after more calls than any examination makes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x - x.mean(0) if self.calls > 1_000_000 else x


class Hooked(nn.Module):
    """Mixes where no forward shows it: in a hook, on the way there or back."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.a, self.b, self.back = nn.Linear(WIDTH, 8), nn.Linear(8, 2), where == "back"
        if where == "output":
            self.a.register_forward_hook(lambda m, i, o: o - o.mean(0))
        if where == "input":
            self.a.register_forward_pre_hook(lambda m, i: (i[0] - i[0].amin(0),))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.back and h.requires_grad:
            h.register_hook(lambda g: g - g.mean(0))
        return cast(Tensor, self.b(h.relu()))


def nearest(m: Any, x: Tensor) -> Tensor:
    return x + 0.5 * x[torch.cdist(x, x).argsort(1)[:, 1]]


def across(m: Any, x: Tensor) -> Tensor:
    return torch.softmax(m.q(x) @ m.k(x).t() / 3, 1) @ x


def by_hidden_key(m: Any, x: Tensor) -> Tensor:
    at = m.k(x)[:, 0].detach().argsort()
    return cast(Tensor, m.b(m.a(x[at]).relu()[at.argsort()]))


def tied(m: Any, x: Tensor) -> Tensor:
    return functional.linear(m.e(x).mean(1), m.e.weight)[:, :2]


MIXING: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.Sequential(nn.Linear(WIDTH, 2), nn.BatchNorm1d(2)),
    "batch norm without weights": lambda: nn.Sequential(
        nn.BatchNorm1d(WIDTH, affine=False), head()
    ),
    "batch norm in eval without statistics": lambda: InEval(
        nn.BatchNorm1d(WIDTH, affine=False, track_running_stats=False), head()
    ),
    "a frozen backbone with batch norm": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)).requires_grad_(False), head()
    ),
    "batch norm by hand": lambda: nn.Sequential(HandNorm(), head()),
    "instance norm that tracks": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4)),
        nn.InstanceNorm1d(2, track_running_stats=True),
        nn.Flatten(),
        head(),
    ),
    "a running mean in an attribute": lambda: nn.Sequential(Remembers("attribute"), head()),
    "a memory bank": lambda: nn.Sequential(Remembers("bank"), head()),
    "attention over the batch in training": lambda: before(
        lambda m, x: torch.softmax(x @ x.t(), 1) @ x if m.training else x
    ),
    "large values alone": lambda: before(lambda m, x: torch.where(x.abs() > 100, x - x.mean(0), x)),
    "small values alone": lambda: before(
        lambda m, x: torch.where(x.abs() < 0.02, x - x.mean(0), x)
    ),
    "a mean without gradient": lambda: before(lambda m, x: x - x.mean(0).detach()),
    "the largest of the batch": lambda: before(lambda m, x: x / x.abs().max()),
    "a quantile of the batch": lambda: before(
        lambda m, x: x.clamp(max=float(x.detach().quantile(0.9)))
    ),
    "the row before": lambda: before(lambda m, x: x + 0.1 * x.roll(1, 0)),
    "a sum that runs": lambda: before(lambda m, x: x.cumsum(0)),
    "the first row": lambda: before(lambda m, x: x - x[:1]),
    "mix-up": lambda: before(lambda m, x: 0.7 * x + 0.3 * x[torch.randperm(len(x))]),
    "large batches alone": lambda: before(lambda m, x: x - x.mean(0) if len(x) > 30 else x),
    "a gate that starts at zero": lambda: nn.Sequential(
        Made(lambda m, x: x + m.gate * x.mean(0), gate=nn.Parameter(torch.zeros(()))), head()
    ),
    "behind dropout": lambda: nn.Sequential(
        nn.Dropout(0.99), Made(lambda m, x: x + x.sum(0)), head()
    ),
    "the number of rows": lambda: before(lambda m, x: x / len(x)),
    "a wrong reshape": lambda: before(lambda m, x: x.t().reshape(x.shape)),
    "rows flipped and put back": lambda: reordered(lambda x: torch.arange(len(x) - 1, -1, -1)),
    "rows sorted and put back": lambda: reordered(lambda x: x.abs().sum(1).argsort()),
    "rows shuffled and put back": lambda: reordered(lambda x: torch.randperm(len(x))),
    "a count of calls": lambda: nn.Sequential(Counts(), head()),
    "a hook on the input": lambda: Hooked("input"),
    "a hook on the output": lambda: Hooked("output"),
    "a hook on the way back": lambda: Hooked("back"),
    "the nearest of the batch": lambda: before(nearest),
    "cross-attention over the batch": lambda: nn.Sequential(
        Made(across, q=nn.Linear(WIDTH, 4), k=nn.Linear(WIDTH, 4)), head()
    ),
    "sorted by a key that is learned": lambda: Made(
        by_hidden_key, k=nn.Linear(WIDTH, 1), a=nn.Linear(WIDTH, 8), b=nn.Linear(8, 2)
    ),
    "how many rows are equal": lambda: before(
        lambda m, x: x * (torch.cdist(x, x) < 1e-6).sum(1, keepdim=True)
    ),
    "a running maximum": lambda: before(lambda m, x: x.cummax(0).values),
    "ghost batch norm": lambda: before(
        lambda m, x: torch.cat([part - part.mean(0) for part in x.split(4)])
    ),
    "functional tying": lambda: nn.Sequential(
        Made(lambda m, x: functional.linear(m.a(x), m.a.weight.t()), a=nn.Linear(WIDTH, 4)), head()
    ),
    "layers without a module": lambda: Made(
        lambda m, x: functional.linear(m.a(x), m.b.weight),
        a=nn.Linear(WIDTH, 4),
        b=nn.Linear(4, 2),
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_mixes_examples_is_refused_before_a_step(name: str) -> None:
    torch.manual_seed(0)
    model = MIXING[name]()
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=r"^(model|loss): [^\n]*\(.+\)|expected|outside"):
        trained(model, data())
    now = model.state_dict()
    assert all(torch.equal(weights[n], v) for n, v in now.items() if "num_batches" not in n)


def balanced(out: Tensor, y: Tensor) -> Tensor:
    counts = torch.bincount(y, minlength=out.shape[1]).clamp(min=1)
    return cross_entropy(out, y) * (len(y) / counts)[y]


def soft(out: Tensor, y: Tensor) -> Tensor:
    losses = cross_entropy(out, y)
    return losses * torch.softmax(losses.detach(), 0)


def hardest(out: Tensor, y: Tensor) -> Tensor:
    losses = cross_entropy(out, y)
    return losses * (losses >= losses.detach().quantile(0.7))


def contrastive(out: Tensor, y: Tensor) -> Tensor:
    z = functional.normalize(out, dim=1)
    return -(z @ z.t()).log_softmax(1).diagonal()


def dice(out: Tensor, y: Tensor) -> Tensor:
    p = out.softmax(1)[:, 1]
    return (1 - 2 * (p * y).sum() / (p.sum() + y.sum() + 1)).expand(len(y))


def cox(out: Tensor, y: Tensor) -> Tensor:
    risk, order = out[:, 0], y.argsort(stable=True)
    return risk[order].flip(0).logcumsumexp(0).flip(0)[order.argsort()] - risk


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "weights of the batch's classes": balanced,
    "a softmax over the batch": soft,
    "the hardest of the batch": hardest,
    "contrastive": contrastive,
    "dice": dice,
    "the mean, repeated": lambda out, y: cross_entropy(out, y).mean().expand(len(y)),
    "less the mean": lambda out, y: cross_entropy(out, y) - cross_entropy(out, y).mean(),
    "a share of the batch": lambda out, y: cross_entropy(out, y) / len(y),
    "cox": cox,
    "outputs standardised": lambda out, y: cross_entropy((out - out.mean(0)) / out.std(0), y),
    "losses sorted": lambda out, y: cross_entropy(out, y).sort().values,
    "losses beside the largest": lambda out, y: (
        cross_entropy(out, y) ** 2 / cross_entropy(out, y).max().detach()
    ),
    "pairs": lambda out, y: cross_entropy(out, y) + (out - out.roll(1, 0)).square().sum(1),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_mixes_examples_is_refused_before_a_step(name: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError):
        trained(head(), data(), LOSSES[name])


def test_a_loss_with_a_memory_is_refused() -> None:
    held: list[Tensor] = []

    def loss(out: Tensor, y: Tensor) -> Tensor:
        losses = cross_entropy(out, y)
        held.append(losses.detach().mean())
        return losses / held[-2:][0]

    with pytest.raises(ModelError):
        trained(head(), data(), loss)


def test_rows_sorted_by_their_length_and_an_embedding_tied_by_hand_are_refused() -> None:
    for run in (by_length, tied):
        model = Made(run, e=nn.Embedding(WORDS, 5), h=nn.Linear(5, 2))
        with pytest.raises(ModelError):
            trained(model, data("ids"))


def test_a_weight_that_also_counts_a_little_past_its_module_is_refused_by_its_name() -> None:
    model = Made(lambda m, x: m.a(x) + 1e-3 * m.a.weight.sum(), a=nn.Linear(WIDTH, 2))
    with pytest.raises(ModelError, match=r"a\.weight is used outside its module"):
        trained(model, data())


def test_the_first_real_batch_shows_rows_that_move_where_made_up_rows_did_not() -> None:
    model = reordered(
        lambda x: (
            torch.arange(len(x) - 1, -1, -1) if bool((x == 7.0).any()) else torch.arange(len(x))
        )
    )
    rows = data()
    trained(copy.deepcopy(model), rows)
    rows.x[3, 2] = 7.0
    separation.forget()
    with pytest.raises(ModelError, match="mixed or reordered"):
        trained(model, rows)


def test_opacus_own_recurrent_layers_are_examined_once_in_a_process(monkeypatch) -> None:
    separation.forget()
    examined, examine = [], separation._examined
    monkeypatch.setattr(
        separation, "_examined", lambda *args: (examined.append(1), examine(*args))[1]
    )

    def last(m: Any, x: Tensor) -> Tensor:
        return cast(Tensor, m.h(m.lstm(x)[0][:, -1]))

    def trained_with(hidden: int) -> None:
        lstm = DPLSTM(3, hidden, batch_first=True)  # keeps its cells in a list, no ModuleList
        rows = Rows(torch.randn(9, 4, 3), torch.arange(9) % 2)
        trained(Made(last, lstm=lstm, h=nn.Linear(hidden, 2)), rows)

    for hidden, so_far in ((5, 1), (5, 1), (6, 2)):
        trained_with(hidden)
        assert len(examined) == so_far


def test_a_model_is_examined_once_in_a_process_unless_it_is_another_one() -> None:
    separation.forget()
    rows, seen = data(), [0]

    def run(m: Any, x: Tensor) -> Tensor:
        seen[0] += 1
        return cast(Tensor, m.a(x) - (x[:1, :2] if m.mixes else 0))

    def calls(mixes: bool, rows: Rows) -> int:
        seen[0] = 0
        trained(Made(run, a=nn.Linear(WIDTH, 2), mixes=mixes), rows)
        return seen[0]

    first, again = calls(False, rows), calls(False, rows)
    assert first > 20
    assert again == 1
    assert calls(False, rows.take(range(20))) == 1
    with pytest.raises(ModelError):
        calls(True, rows)
