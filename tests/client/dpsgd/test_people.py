"""A person is one contribution: the mean gradient of their rows, clipped once, drawn as one."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.layers import DPLSTM
from torch import Tensor, nn

from client.dpsgd import clipped_sum
from client.dpsgd.clipping import BookKeeping
from client.dpsgd.people import People
from client.dpsgd.training import TrainingError, train
from client.tasks.digits import task as digits
from client.tasks.rows import Rows
from client.tasks.task import Task, none_of
from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event, EventError
from privacy.contract.keys.types import PlanError
from privacy.contract.plan import Plan
from privacy.contract.plan_file import parse
from tests.support.small_models import Made, cross_entropy, data

CLIP = 0.5


def a_plan(**keys: Any) -> Plan:
    known = {
        "task": "table", "rounds": 1, "rate": 1.0, "subjects": 5, "lr": 1.0, "sites": 1,
        "clip": CLIP, "sigma": 1.0, "delta": 1e-5, "unit": "subject",
    }  # fmt: skip
    return Plan(**(known | keys))


def rows_of(kind: str, counts: list[int]) -> Rows:
    rows = data(kind, sum(counts))
    subject = torch.tensor([k * 11 - 7 for k, n in enumerate(counts) for _ in range(n)])
    mixed = torch.randperm(len(rows))
    return replace(rows, subject=subject).take(mixed)


def one_by_one(model: nn.Module, rows: Rows, most: int | None, clip: float) -> list[Tensor]:
    """Autograd, person by person."""
    weights = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in weights]
    assert rows.subject is not None
    for person in rows.subject.unique():
        at = (rows.subject == person).nonzero().flatten()[:most]
        loss = cross_entropy(model(rows.x[at]), rows.y[at]).mean()
        gradient = torch.autograd.grad(loss, weights)
        norm = float(torch.cat([g.flatten() for g in gradient]).norm())
        for t, g in zip(total, gradient, strict=True):
            t += g * min(1.0, clip / norm)
    return total


def words() -> nn.Module:
    return Made(lambda m, x: m.h(m.e(x).mean(1)), e=nn.Embedding(9, 4), h=nn.Linear(4, 2))


def tied() -> nn.Module:
    table, out = nn.Embedding(9, 5), nn.Linear(5, 9, bias=False)
    out.weight = table.weight
    return Made(lambda m, x: m.o(m.e(x)).mean(1), e=table, o=out)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)), "flat"),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2)), "flat"),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)
        ),
        "images",
    ),
    "words": (words, "ids"),
    "tied": (tied, "ids"),
    "recurrent": (
        lambda: Made(
            lambda m, x: m.h(m.l(x)[0][:, -1]),
            l=DPLSTM(8, 4, batch_first=True),
            h=nn.Linear(4, 2),
        ),
        "sequence",
    ),
    "by torch.func": (
        lambda: nn.Sequential(
            nn.Linear(8, 2), Made(lambda m, x: x * m.t, t=nn.Parameter(torch.tensor(1.5)))
        ),
        "flat",
    ),
}


@pytest.mark.parametrize("most", [None, 1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_persons_mean_gradient_is_clipped_once(name: str, most: int | None) -> None:
    torch.manual_seed(1)
    build, kind = MODELS[name]
    model, rows = build().train(), rows_of(kind, [1, 5, 2, 7])
    people = People.of(rows.subject, most, len(rows))
    at, group = people.take(torch.tensor([0, 1, 2, 3]))
    for clip in (0.05, 1e6):
        book = BookKeeping(model, clip=clip)
        model.zero_grad()
        book.accumulate(rows.x[at], rows.y[at], cross_entropy, group)
        ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        book.to_standard_module()
        for a, b in zip(ours, one_by_one(model, rows, most, clip), strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(1, 10), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_everybody_has_their_own_rows_the_first_ones_up_to_the_cap(
    counts: list[int], most: int, seed: int
) -> None:
    subject = torch.tensor([k for k, n in enumerate(counts) for _ in range(n)])
    subject = subject[torch.randperm(len(subject), generator=torch.Generator().manual_seed(seed))]
    people = People.of(subject, most, len(subject))
    drawn = torch.arange(0, len(counts), 2)
    rows, group = people.take(drawn)
    expected = [(subject == k).nonzero().flatten()[:most].tolist() for k in drawn.tolist()]
    assert rows.tolist() == list(itertools.chain(*expected))
    for k, own in enumerate(expected):
        places = group.at[k]
        assert rows[places[group.real[k]]].tolist() == own
        assert set(rows[places].tolist()) == set(own)
        assert group.weights[places].tolist() == pytest.approx([1 / len(own)] * len(places))


@pytest.mark.parametrize("value", [1e3, 1e20, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["linear", "convolution", "by torch.func"])
def test_a_person_of_many_rows_moves_the_sum_by_one_clip_at_most(name: str, value: float) -> None:
    torch.manual_seed(0)
    build, kind = MODELS[name]
    model, rows = build(), rows_of(kind, [2, 3, 6])
    assert rows.subject is not None
    last = int(rows.subject.max())
    rows.x[rows.subject == last] *= value
    sums = []
    for some in (rows, rows.take((rows.subject != last).nonzero().flatten())):
        people = People.of(some.subject, None, len(some))
        at, group = people.take(torch.arange(len(people)))
        book = BookKeeping(model, clip=CLIP)
        model.zero_grad()
        book.accumulate(some.x[at], some.y[at], cross_entropy, group)
        sums.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        book.to_standard_module()
    moved = float((sums[0] - sums[1]).norm())
    assert moved <= CLIP * (1 + 1e-5)
    assert moved > 0 or not np.isfinite(value) or value > 1e6


def test_chunks_of_people_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = MODELS["convolution"][0](), rows_of("images", [1, 4, 2])
    people = People.of(rows.subject, None, len(rows))
    at, group = people.take(torch.arange(3))
    sums = []
    for most in (1 << 24, 100):
        monkeypatch.setattr(clipped_sum, "_MOST", most)
        book = BookKeeping(model, clip=CLIP)
        model.zero_grad()
        book.accumulate(rows.x[at], rows.y[at], cross_entropy, group)
        sums.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        book.to_standard_module()
    for a, b in zip(*sums, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def a_task() -> Task:
    return replace(digits(), loss=cross_entropy, classes=("a", "b"), shape=(8,), subjects=True)


def run(rows: Rows, plan: Plan, sigma: float = 0.0, rate: float = 1.0, **keys: Any) -> Any:
    torch.manual_seed(3)
    model = nn.Linear(8, 2)
    event = Event("subject", sigma, rate, keys.pop("steps", 1))
    done = train(model, rows, a_task(), plan, site="s", event=event, round=1, **keys)
    return np.concatenate([v.ravel() for v in done.update.values()])


def test_a_round_draws_people_and_divides_by_their_public_number() -> None:
    rows = rows_of("flat", [1, 9, 4, 2])
    drawn: list[Any] = []
    update = run(rows, a_plan(subjects=40), on_step=lambda step, who, optimizer: drawn.append(who))
    assert [len(who) for who in drawn] == [4]
    torch.manual_seed(3)
    model = nn.Linear(8, 2)
    expected = torch.cat([t.flatten() for t in one_by_one(model, rows, None, CLIP)]) / -40
    assert np.allclose(update, expected.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.long
def test_people_are_drawn_as_one_whatever_their_number_of_rows() -> None:
    rows = rows_of("flat", [1, 200] * 10)
    sizes: list[int] = []
    run(
        rows, a_plan(rate=0.3, steps=400), rate=0.3, steps=400,
        on_step=lambda step, who, optimizer: sizes.append(len(who)),
    )  # fmt: skip
    assert np.mean(sizes) == pytest.approx(6, abs=0.6)


@pytest.mark.parametrize("micro", [1, 2, 100])
def test_micro_batches_are_of_people_and_change_nothing(micro: int) -> None:
    rows = rows_of("flat", [1, 9, 4, 2])
    whole = run(rows, a_plan())
    assert np.allclose(whole, run(rows, a_plan(micro_batch=micro)), rtol=1e-4, atol=1e-7)
    capped = run(rows, a_plan(rows_per_subject=2))
    assert not np.allclose(whole, capped, rtol=1e-3)


def test_bfloat16_stays_near() -> None:
    rows = rows_of("flat", [1, 9, 4, 2])
    whole, half = run(rows, a_plan()), run(rows, a_plan(precision="bfloat16"))
    assert np.linalg.norm(whole - half) < 0.02 * np.linalg.norm(whole)


def test_rows_of_nobody_are_refused_and_no_rows_are_an_empty_sample() -> None:
    with pytest.raises(TrainingError, match="subject"):
        run(data(), a_plan())
    assert not run(none_of(a_task()), a_plan()).any()
    assert run(none_of(a_task()), a_plan(), sigma=1.0).any()


def test_what_does_not_fit_the_unit_is_refused_in_one_line() -> None:
    for keys, said in (
        ({"simulation": {"engine": "vector"}}, "engine"),
        ({"rows": 5}, "rows must be left out"),
        ({"site": {"a": {"rows": 5}}}, r"site\.a\.rows must be left out"),
        ({"subjects": 200_000}, "1/subjects"),
    ):
        with pytest.raises(PlanError, match=said) as refused:
            parse(a_plan().to_dict() | keys)
        assert "\n" not in str(refused.value)
    record = {k: v for k, v in a_plan().to_dict().items() if k != "subjects"} | {"unit": "record"}
    for keys, said in (
        ({"rows": 5, "rows_per_subject": 3}, "rows_per_subject"),
        ({"rows": 5, "subjects": 3}, "subjects must be left out"),
        ({}, "rows must be an integer"),
    ):
        with pytest.raises(PlanError, match=said):
            parse(record | keys)


def test_a_person_costs_what_a_record_costs_and_never_more_for_more_records() -> None:
    event = Event("subject", 9.0, 1.0, 5)
    record = replace(event, unit="record")
    assert spent([event], 1e-5) == spent([record], 1e-5)
    assert spent([event], 1e-5, records=3) == spent([event], 1e-5)
    assert spent([event.for_records(3)], 1e-5, records=None) == spent([event], 1e-5)
    assert spent([record.for_records(3)], 1e-5, records=None) > 2 * spent([record], 1e-5)
    with pytest.raises(EventError, match="records must be 1"):
        replace(event, records=3)
