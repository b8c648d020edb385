"""What a record moves is bounded for the computer's arithmetic too, whatever the others are."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from client.dpsgd import clipped_sum
from client.dpsgd.clipped_sum import BatchSum, row_squares
from client.dpsgd.clipping import BookKeeping
from client.dpsgd.training import train
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.mechanism import noise
from privacy.mechanism.sensitivity import NORMS, noise_std, slack

PRODUCT: Any = SimpleNamespace(loss=lambda out, y: out[:, 0] * y)  # the gradient of w[0] is x y


def released(values: np.ndarray, micro_batch: int | None, rows: int) -> float:
    """The sum that a step at rate 1 releases beside hardly any noise."""
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    x = torch.zeros(len(values), 2)
    x[:, 0] = 1
    plan = Plan(
        task="x", sites=1, rounds=1, rate=1.0, rows=rows, lr=1.0, clip=1.0, sigma=1e-4, delta=1e-5,
        micro_batch=micro_batch,
    )  # fmt: skip
    event = Event("record", 1e-4, 1.0, 1)
    data = Rows(x, torch.from_numpy(values))
    trained = train(model, data, PRODUCT, plan, site="s", event=event, round=1)
    return -float(trained.update["weight"][0, 0]) * rows


def crafted(size: int, micro_batch: int, cycles: int) -> np.ndarray:
    """Rows whose float32 sum, micro-batch by micro-batch, one more row carries away.

    Casacuberta et al. 2022: after a large sum each group's part is just above, then just below,
    half of the spacing of floats there.
    """
    spacing = 2.0 ** (np.floor(np.log2(0.9 * size)) - 23)
    up = np.full(micro_batch, 0.51 * spacing / micro_batch)
    down = np.full(micro_batch, -0.49 * spacing / micro_batch)
    head = np.full(size - size % micro_batch, 0.9)
    return np.concatenate([head, np.tile(np.concatenate([up, down]), cycles)]).astype(np.float32)


@pytest.mark.long
@pytest.mark.parametrize(
    ("micro_batch", "rows"),
    [(8, 1024), (None, 1024), pytest.param(8, 4096, marks=pytest.mark.slow), (None, 9)],
)
def test_crafted_neighbours_differ_by_what_the_record_adds(
    micro_batch: int | None, rows: int
) -> None:
    values = crafted(1000, micro_batch or 8, 400)
    more = np.concatenate([[np.float32(0.5)], values]).astype(np.float32)
    moved = released(more, micro_batch, rows) - released(values, micro_batch, rows)
    assert moved == pytest.approx(0.5, abs=2 * slack(float(rows)) + 1e-2)
    assert abs(moved) < 1 + slack(float(rows))


@pytest.mark.long
@pytest.mark.parametrize("size", [5, 400, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("expected", [4.0, 400.0])
def test_blocks_give_the_sums_of_float64(size: int, expected: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 3))
    x, y = torch.randint(0, 50, (size, 4)), torch.randn(size)
    loss = lambda out, y: out.square().sum(1) + out[:, 0] * y  # noqa: E731
    sums = BatchSum(list(model.parameters()), slack(expected))
    book = BookKeeping(model, clip=0.5, sums=sums)
    sums.begin(size)
    for part in torch.split(torch.arange(size), size // 4):
        book.accumulate(x[part], y[part], loss)
    total = sums.total()[0].double()
    alone = torch.zeros_like(total)
    plain = BookKeeping(model, clip=0.5)
    for i in range(size):
        for p in model.parameters():
            p.grad = None
        plain.accumulate(x[i : i + 1], y[i : i + 1], loss)
        alone += torch.cat([p.grad.reshape(-1) for p in model.parameters()]).double()
    away = (total - alone).norm().item()
    assert away < 0.5 * max(slack(expected), 1e-5 * size**0.5)


def test_two_blocks_lie_side_by_side_and_more_add_up_in_float64() -> None:
    p = nn.Parameter(torch.zeros(3))
    for rows, vectors in ((100, 1), (256, 2), (600, 1)):
        sums = BatchSum([p], slack(float(rows)))
        for _ in range(2):  # memory is used again
            sums.begin(rows)
            blocks = torch.randn(8, 3)
            made = 0
            for (_, sum_of), block in zip(sums.blocks(rows), blocks, strict=False):
                sum_of(p).add_(block)
                made += 1
            first, second = sums.summands()
            assert (1 if second is None else 2) == vectors
            assert first.dtype == (torch.float64 if made > 2 else torch.float32)
            whole = first.double() if second is None else first.double() + second.double()
            right = sum((b.double() for b in blocks[1:made]), blocks[0].double())
            assert torch.equal(whole, right)
            total, parts = sums.total()
            assert torch.equal(total.double(), right)
            assert torch.equal(parts[p].double(), right)
            assert torch.equal(sums.total()[0].double(), right)


def test_a_step_of_two_blocks_releases_what_float64_would(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(0, 1, 256).astype(np.float32)
    with noise.insecure(3):
        one = released(values, None, 256)
    monkeypatch.setattr(BatchSum, "summands", lambda self, **_: (self.total()[0], None))
    with noise.insecure(3):
        assert released(values, None, 256) == one


def test_rounding_that_blocks_lose_is_kept_in_very_large_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clipped_sum, "_COMPENSATED", 10)
    p = nn.Parameter(torch.zeros(1))
    sums = BatchSum([p], slack(1.0))
    sums.begin(100_000)
    sizes = []
    for i, (rows, sum_of) in enumerate(sums.blocks(100_000)):
        sum_of(p).add_(2.0**60 if i == 0 else 1.0 if i < 24 else -(2.0**60))
        sizes.append(rows)
    assert len(sizes) == 25
    assert sums.total()[0].item() == 23.0


@given(st.integers(1, 5000), st.integers(0, 10**6))
def test_squared_norms_are_right_whatever_the_length(width: int, seed: int) -> None:
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    found = row_squares(x)
    assert found.dtype == torch.float64
    assert torch.allclose(found, x.double().square().sum(1), rtol=2.0**-13)


def test_small_terms_are_not_lost_beside_large_ones() -> None:
    # Two tokens: one large entry and 2^18 that float32 would add to it without effect.
    n = 512
    model = nn.Linear(n, n, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    book = BookKeeping(model, clip=1.0)
    x = torch.zeros(1, 2, n)
    x[0, 0, :8] = 1.0
    x[0, 1, :] = 1.7e-4
    pull = torch.zeros(2, n)
    pull[0, 0] = 1.0
    pull[1, :] = 1.0
    book.accumulate(x, torch.zeros(1), lambda out, y: (out * pull).sum((1, 2)))
    assert model.weight.grad is not None
    assert float(model.weight.grad.double().norm()) <= 1 + NORMS


def layers() -> list[tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    return [
        (nn.Linear(2000, 700), torch.randn(1, 2000)),
        (nn.Sequential(nn.Unflatten(1, (2, 16, 16)), nn.Conv2d(2, 9, 3)), torch.randn(1, 512)),
        (nn.Sequential(nn.LayerNorm(3000)), torch.randn(1, 3000)),
    ]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("which", range(3))
def test_no_record_adds_more_than_the_clip_and_what_is_paid_for(which: int, scale: float) -> None:
    model, x = layers()[which]
    book = BookKeeping(model, clip=1.0)
    seen = torch.randn(7)
    book.accumulate(
        x * scale, torch.zeros(1), lambda out, y: (out.flatten(1)[:, :7] * seen).sum(1) * 100
    )
    total = torch.cat([p.grad.reshape(-1) for p in model.parameters()]).double()
    assert 0.99 < float(total.norm()) <= 1 + NORMS


def test_the_noise_pays_for_the_rounding_of_the_trainers_own_sums() -> None:
    optimizers: list[Any] = []
    plan = Plan(
        task="x", sites=1, rounds=1, rate=0.5, rows=512, lr=1.0, clip=0.7, sigma=1.5, delta=1e-5
    )
    event = Event("record", 1.5, 0.5, 1)
    rows = Rows(torch.zeros(3, 4), torch.zeros(3))
    train(
        nn.Linear(4, 2), rows, PRODUCT, plan, site="s", event=event, round=1,
        on_step=lambda *seen: optimizers.append(seen[2]),
    )  # fmt: skip
    assert optimizers[0]._std == noise_std(1.5, 0.7, 10, slack(256.0)) > 1.5 * 0.7 * 1.003
