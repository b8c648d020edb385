"""Views of a record and the weight of its class: one clipped gradient a record all the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from client.dpsgd import training
from client.dpsgd.training import clipped_sum, train
from client.tasks import registry
from client.tasks.features.views import views
from client.tasks.losses import cross_entropy, weighted
from client.tasks.registry import fitting, task
from client.tasks.rows import Rows, TaskError
from client.tasks.task import Task
from privacy.accounting.events import Event
from privacy.contract.keys.tables import AugmentPlan
from privacy.contract.keys.types import PlanError
from privacy.contract.plan import Plan
from privacy.contract.plan_file import parse

SCHEMA = 'reader = "images"\nclasses = ["a", "b"]\nsize = [6, 6]\n'
PLAN: dict[str, Any] = {
    "task": "images",
    "schema": SCHEMA,
    "rounds": 1,
    "rate": 1.0,
    "rows": 3,
    "lr": 1.0,
    "sites": 1,
    "clip": 0.5,
    "sigma": 1.0,
    "delta": 1e-4,
    "model": {"layers": ["conv 2 3", "tanh", "flatten", "linear 2"]},
}
AUGMENT = {"views": 3, "across": 1, "down": 2, "flip": True}
EVENT = Event("record", 1.0, 1.0, 1)


def a_plan(**keys: Any) -> tuple[Plan, Task]:
    plan = parse({**PLAN, **keys})
    return plan, registry.task_of(plan)


def shaken(learning: Task) -> nn.Module:
    model = learning.model(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return model


def pictures(count: int) -> Rows:
    draw = torch.Generator().manual_seed(count)
    return Rows(torch.randn(count, 1, 6, 6, generator=draw), torch.arange(count) % 2)


def the_same_views(x: Tensor, plan: AugmentPlan, generator: torch.Generator) -> Tensor:
    """A record's views whichever records are beside it."""
    own = [torch.Generator().manual_seed(i) for i in range(len(x))]
    return torch.cat([views(x[i : i + 1], plan, one) for i, one in enumerate(own)] or [x])


def flat(sums: dict[str, Any]) -> Tensor:
    return torch.cat([torch.from_numpy(value).flatten() for value in sums.values()])


def test_views_are_shifts_and_mirror_images_of_their_record() -> None:
    x = torch.arange(36.0).reshape(1, 1, 6, 6)
    seen = views(x, AugmentPlan(40, across=1, down=2, flip=True), torch.Generator().manual_seed(0))
    assert seen.shape == (40, 1, 6, 6)
    framed = nn.functional.pad(x, (1, 1, 2, 2), mode="replicate")[0, 0]
    moves = {
        (turned, down, across): (framed.flip(-1) if turned else framed)[
            down : down + 6, across : across + 6
        ]
        for turned in (False, True)
        for down in range(5)
        for across in range(3)
    }
    hits = {name for name, move in moves.items() for one in seen if torch.equal(one[0], move)}
    assert all(any(torch.equal(one[0], move) for move in moves.values()) for one in seen)
    assert len(hits) > 15 and {name[0] for name in hits} == {False, True}


def test_the_views_of_a_record_lie_beside_each_other_and_other_rows_are_repeated() -> None:
    x = torch.stack([torch.full((1, 4, 4), float(i)) for i in range(3)])
    plan = AugmentPlan(4, across=2)
    seen = views(x, plan, torch.Generator())
    assert seen[:, 0, 0, 0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(
        views(x[:, 0, 0], plan, torch.Generator()), x[:, 0, 0].repeat_interleave(4, 0)
    )


@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 4), scale=st.sampled_from([1e-2, 1.0, 1e3]), many=st.integers(2, 4))
def test_a_record_more_moves_the_sum_by_at_most_the_clip(
    count: int, scale: float, many: int
) -> None:
    plan, learning = a_plan(augment={**AUGMENT, "views": many}, class_weights={"b": 0.25})
    model, rows = shaken(learning), pictures(count)
    rows = Rows(rows.x * scale, rows.y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "views", the_same_views)
        sums = [
            flat(clipped_sum(model, some, learning, plan, event=EVENT, expected=1e4))
            for some in (rows, rows.take(range(count - 1)))
        ]
    assert float((sums[0] - sums[1]).norm()) <= 0.5 * (1 + 1e-6)


def test_a_contribution_is_the_clipped_mean_gradient_of_the_views(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, learning = a_plan(augment=AUGMENT)
    model, rows = shaken(learning), pictures(2)
    seen = views(rows.x, AugmentPlan(**AUGMENT), torch.Generator().manual_seed(3))
    monkeypatch.setattr(training, "views", lambda x, augment, generator: seen)
    found = flat(clipped_sum(model, rows, learning, plan, event=EVENT, expected=1e4))
    expected = torch.zeros_like(found)
    for i in range(2):
        loss = cross_entropy(model(seen[3 * i : 3 * i + 3]), rows.y[i].repeat(3)).mean()
        one = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        expected += one.double() * min(1.0, 0.5 / float(one.norm()))
    assert torch.allclose(found, expected, atol=1e-5)


def test_plain_training_takes_the_mean_of_the_views_too() -> None:
    plain = {k: v for k, v in PLAN.items() if k not in ("clip", "sigma", "delta")}
    moved = []
    for more in ({}, {"augment": {"views": 2, "flip": True}}):
        plan = parse({**plain, "unit": "none", **more})
        learning = registry.task_of(plan)
        even = torch.ones(3, 1, 6, 6) * torch.arange(1.0, 4)[:, None, None, None]
        rows = Rows(even, torch.tensor([0, 1, 1]))  # pictures that a mirror does not change
        done = train(shaken(learning), rows, learning, plan, site="a", event=None, round=1)
        moved.append(flat(done.update))
    assert torch.allclose(moved[0], moved[1], atol=1e-6)


def test_a_rows_loss_counts_what_its_class_weighs() -> None:
    outputs, y = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    loss = weighted(cross_entropy, (1.0, 0.25))
    plain = cross_entropy(outputs, y)
    assert torch.allclose(loss(outputs, y), plain * torch.tensor([1, 0.25, 0.25, 1]))
    assert weighted(cross_entropy, (1.0, 0.25)) is loss


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"class_weights": {"c": 0.5}}, "class_weights.c: must be one of a, b"),
        ({"augment": {"views": 2, "across": 6}}, "augment.across must be below 6"),
    ],
)
def test_what_does_not_fit_the_rows_is_refused_by_name(keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(TaskError, match=expected):
        a_plan(**keys)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"class_weights": {"a": 1.5}}, "class_weights"),
        ({"class_weights": {"a": 0.0}}, "class_weights"),
        ({"augment": {"views": 2}}, "augment must set across, down or flip"),
        ({"augment": {"views": 1, "flip": True}}, "augment.views must be"),
        ({"augment": AUGMENT, "simulation": {"engine": "vector"}}, "where augment is set"),
    ],
)
def test_a_plan_with_keys_that_mean_nothing_is_refused(keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(PlanError, match=expected):
        parse({**PLAN, **keys})


def test_rows_without_a_picture_have_no_views_and_numbers_no_classes() -> None:
    plan, _ = a_plan(augment=AUGMENT)
    texts = task("texts", SCHEMA.replace("images", "texts").replace("size = [6, 6]", ""))
    with pytest.raises(TaskError, match="rows are pictures or spectra"):
        fitting(texts, plan)
    plan, learning = a_plan(class_weights={"a": 0.5})
    with pytest.raises(TaskError, match="left out for a task of regression"):
        fitting(replace(learning, kind="regression"), plan)


def test_both_are_part_of_what_sites_approve() -> None:
    plain, _ = a_plan()
    assert "class_weights" not in plain.to_json() and "augment" not in plain.to_json()
    for keys in ({"augment": AUGMENT}, {"class_weights": {"a": 0.5}}):
        changed, _ = a_plan(**keys)
        assert changed.digest != plain.digest
        assert parse(changed.to_dict()).digest == changed.digest
