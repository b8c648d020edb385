"""Many sites' rounds in one computation are what each would have been by itself."""

import json
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

import simulations.vector
from client.layers import ModelError
from client.tasks import Rows, Task
from client.tasks.digits import task as digits
from client.tasks.learning import cross_entropy, squared_error
from client.training import TrainingError, train
from privacy import noise
from privacy.events import Event
from privacy.loading import load_plan
from privacy.plan import Plan, PlanError
from server.checkpoint import latest, read
from simulations.run import simulate
from simulations.stacked import Stack
from simulations.together import Batches, Member, privatise, train_together

TABLE = """
kind = "{kind}"
label = "price"
hidden = [5, 3]
test = "later.csv"
[columns.price]
{label}
[columns.rooms]
type = "number"
min = 0
max = 10
[columns.garden]
type = "number"
min = 0
max = 500
"""
LABELS = {
    "regression": 'type = "number"\nmin = 0\nmax = 200',
    "classification": 'type = "category"\nvalues = ["low", "middle", "high"]',
}


def played(folder: Path, engine: str, plan: str, sets: list[str], **keys: Any) -> dict[str, Any]:
    """Everything that a reproducible run comes to: weights, metrics, answers, events spent."""
    chosen = load_plan(plan, [*sets, f"simulation.engine={engine}"])
    result = simulate(chosen, folder, insecure=True, **keys)
    last = latest(folder / "checkpoints")
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {
        "reason": result.outcome.reason,
        "weights": read(last)[0] if last is not None else {},
        "metrics": [line["metrics"] for line in lines],
        "sites": [line["sites"] for line in lines],
        "events": {
            path.name: [
                [entry[key] for key in ("round", "event")]
                for entry in map(json.loads, path.read_text().splitlines())
            ]
            for path in sorted((folder / "ledgers").glob("*.jsonl"))
        },
    }


def same(
    tmp_path: Path, plan: str, sets: list[str], *, within: float = 1e-5, **keys: Any
) -> dict[str, Any]:
    serial = played(tmp_path / "serial", "serial", plan, sets, **keys)
    vector = played(tmp_path / "vector", "vector", plan, sets, **keys)
    for key in ("reason", "sites", "events"):
        assert vector[key] == serial[key], key
    for name, array in serial["weights"].items():
        assert vector["weights"][name] == pytest.approx(array, abs=within), name
    for one, other in zip(serial["metrics"], vector["metrics"], strict=True):
        assert one == pytest.approx(other, abs=10 * within)
    return vector


# So little noise that a rounding to its grid, which may turn either way, is below the tolerance.
FEW = ["rounds=3", "sites=6", "sigma=0.01", "rate=0.1"]


@pytest.mark.parametrize(
    "sets",
    [
        ["steps=4", "schedule=cosine"],
        ["steps=3", "optimizer=momentum", "l2=0.1", "split=dirichlet:0.3", "weights=rows"],
        ["steps=3", "optimizer=adam", "lr=0.05", "aggregation=fedprox", "mu=0.5"],
        ["rate=0.001", "steps=2"],
        ["rate=1.0", "micro_batch=7"],
        ["steps=2", "metrics=['loss', 'accuracy', 'rows']", "metrics_sigma=3.0"],
        ["simulation.dropout=0.3", "simulation.slow=0.3"],
    ],
    ids=lambda sets: " ".join(sets),
)
def test_a_run_has_the_numbers_and_the_ledgers_of_serial(sets: list[str], tmp_path: Path) -> None:
    result = same(tmp_path, "digits", [*FEW, *sets])
    assert result["reason"] == "done"
    assert all(result["events"].values())


def test_sites_of_different_epsilon_train_beside_each_other(tmp_path: Path) -> None:
    sets = ["site.site-1.epsilon=5", "site.site-4.epsilon=9", "delta=1e-3", "wire=bfloat16"]
    result = same(tmp_path, "digits", [*FEW, *sets], within=1e-3)
    noises = {entries[0][1]["sigma"] for entries in result["events"].values()}
    assert len(noises) == 3


@pytest.mark.parametrize("unit", ["none", "client"])
def test_units_without_noise_at_the_sites_are_the_same_too(unit: str, tmp_path: Path) -> None:
    sets = [s for s in FEW if unit != "none" or not s.startswith("sigma")]
    adaptive = ["clip_quantile=0.5", "clip_sigma=5"] if unit == "client" else []
    result = same(tmp_path, "digits", [*sets, f"unit={unit}", "steps=3", *adaptive])
    assert result["reason"] == "done"
    assert len(result["events"]) == (1 if unit == "client" else 0)


@pytest.mark.parametrize("kind", sorted(LABELS))
def test_hidden_layers_learn_a_table_as_in_serial(kind: str, tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text(TABLE.format(kind=kind, label=LABELS[kind]))
    draws = np.random.default_rng(0)
    for name in ("first.csv", "later.csv"):
        rooms, garden = draws.integers(0, 10, 60), draws.integers(0, 500, 60)
        prices = (10 * rooms + garden / 10).round(1)
        words = np.array(["low", "middle", "high"])[np.digitize(prices, [50, 90])]
        given_ = words if kind == "classification" else prices
        rows = [f"{a},{b},{c}" for a, b, c in zip(rooms, garden, given_, strict=True)]
        (tmp_path / name).write_text("\n".join(["rooms,garden,price", *rows]) + "\n")
    (tmp_path / "plan.toml").write_text(
        'task = "table"\nschema = "schema.toml"\nrounds = 3\nsites = 7\nrate = 0.3\nsteps = 3\n'
        'rows = "actual"\nlr = 0.5\nclip = 0.7\nsigma = 0.8\ndelta = 1e-3\n'
    )
    same(tmp_path, str(tmp_path / "plan.toml"), [], data=tmp_path / "first.csv")


def test_a_spent_site_declines_and_the_others_go_on(tmp_path: Path) -> None:
    sets = ["sites=6", "sigma=2", "rate=0.1", "delta=1e-3", "site.site-2.limit=0.2", "rounds=4"]
    result = same(tmp_path, "digits", sets, within=1e-3)
    reasons = [line["site-2"]["reason"] for line in result["sites"]]
    assert reasons[0] is None
    assert reasons[-1] == "budget-exhausted"
    assert all(line["site-3"]["status"] == "trained" for line in result["sites"])


def test_a_bound_on_memory_parts_the_sites_and_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counting(stack: Stack, members: list[Member], *args: Any, **keys: Any) -> Any:
        sizes.append(len(members))
        return train_together(stack, members, *args, **keys)

    monkeypatch.setattr(simulations.vector, "train_together", counting)
    whole = played(tmp_path / "whole", "vector", "digits", FEW)
    assert sizes == [6] * 3
    monkeypatch.setattr(simulations.vector, "_MOST", 100_000)
    parted = played(tmp_path / "parted", "vector", "digits", FEW)
    assert max(sizes[3:]) < 6
    assert sum(sizes[3:]) == 18
    for name, array in whole["weights"].items():
        assert parted["weights"][name] == pytest.approx(array, abs=1e-6)
    assert parted["events"] == whole["events"]


def test_natural_sites_of_real_data_are_the_same(real_data: Path, tmp_path: Path) -> None:
    sets = ["rounds=3", "sigma=0.01", "rate=0.5", "steps=2"]
    same(tmp_path, "heart-disease", sets, data=real_data / "heart_disease")


def test_a_model_that_cannot_be_stacked_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = replace(digits(), model=lambda seed: nn.Conv1d(1, 1, 1))
    monkeypatch.setattr(simulations.vector, "task", lambda name, schema: conv)
    with pytest.raises(PlanError, match=r'simulation.engine: .* use "serial" .*Conv1d'):
        simulate(load_plan("digits", ["simulation.engine=vector"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


SHARED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), (4,)),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), (4,)),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), (4,)),
        (nn.Sequential(SHARED, nn.Tanh(), SHARED), (4,)),
        (nn.Sequential(nn.Flatten(0), nn.Linear(4, 4)), (2, 2)),
        (nn.Linear(4, 4), (3, 4)),
        (nn.Linear(4, 4).requires_grad_(False), (4,)),
        (nn.Linear(4, 4).double(), (4,)),
        (nn.Sequential(nn.Tanh()), (4,)),
        (nn.Embedding(4, 4), (4,)),
    ],
    ids=lambda value: str(value).replace("\n", ""),
)
def test_only_linear_layers_on_vectors_are_stacked(model: nn.Module, shape: Any) -> None:
    with pytest.raises(ModelError, match="model: expected"):
        Stack(model, shape)


# One computation against one by one, by law.

ACTIVATIONS = [nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.Softplus]


@st.composite
def models(draw: st.DrawFn) -> tuple[Callable[[int], nn.Module], tuple[int, ...]]:
    shape = draw(st.sampled_from([(3,), (1,), (2, 2), (1, 2, 3)]))
    widths = draw(st.lists(st.integers(1, 5), max_size=2))
    activation = draw(st.sampled_from(ACTIVATIONS))
    bias = draw(st.booleans())

    def build(seed: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()] if len(shape) > 1 else []
        before = int(np.prod(shape))
        for width in widths:
            layers += [nn.Linear(before, width, bias=bias), activation()]
            before = width
        return nn.Sequential(*layers, nn.Linear(before, 2))

    return build, shape


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    prox = draw(st.booleans())
    return Plan(
        task="digits",
        rounds=draw(st.integers(1, 3)),
        rate=draw(st.sampled_from([0.05, 0.3, 1.0])),
        rows=draw(st.integers(1, 20)),
        steps=draw(st.integers(1, 3)),
        lr=draw(st.sampled_from([0.01, 0.3])),
        clip=draw(st.sampled_from([0.01, 1.0, 100.0])),
        optimizer=draw(st.sampled_from(["sgd", "momentum", "adam"])),
        schedule=draw(st.sampled_from(["constant", "cosine"])),
        l2=draw(st.sampled_from([0.0, 0.1])),
        aggregation="fedprox" if prox else "fedavg",
        mu=1.0 if prox else 0.0,
        delta=1e-5,
    )


@settings(max_examples=60, deadline=None)
@given(
    models(),
    plans(),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.7, None]),
    st.sampled_from([None, np.nan, np.inf, 1e30]),
    st.integers(0, 2**32 - 1),
)
def test_training_together_is_training_one_by_one(
    shaped: Any, plan: Plan, sizes: list[int], sigma: float | None, odd: float | None, seed: int
) -> None:
    build, shape = shaped
    draws = np.random.default_rng(seed)
    task = replace(digits(), model=build, shape=shape, loss=cross_entropy)
    stack = Stack(build(0), shape)
    members, alone = [], []
    for i, size in enumerate(sizes):
        x = draws.normal(size=(size, *shape)).astype(np.float32)
        if odd is not None and sigma is not None and size:
            x[draws.integers(size)].flat[0] = odd
        rows = Rows(torch.from_numpy(x), torch.from_numpy(draws.integers(0, 2, size)))
        model = build(0)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.from_numpy(draws.normal(size=p.shape)))
        weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
        event = None if sigma is None else Event("record", sigma, plan.rate, plan.steps)
        with noise.insecure(i):
            trained = train(model, rows, task, plan, site=f"s{i}", event=event, round=plan.rounds)
        alone.append(trained.update)
        std = (sigma or 0.0) * (plan.clip or 0.0)
        members.append(Member(rows, weights, plan.denominator(f"s{i}"), std, drawing(i)))
    together = train_together(
        stack,
        members,
        task,
        plan,
        rate=plan.rate,
        steps=plan.steps,
        round=plan.rounds,
        private=sigma is not None,
    )
    scale = max(1.0, *(float(np.abs(a).max()) for update in alone for a in update.values()))
    for one, other in zip(alone, together, strict=True):
        assert other.steps == plan.steps
        for name, array in one.items():
            assert np.isfinite(array).all()
            assert other.update[name] == pytest.approx(array, abs=1e-5 * scale, rel=1e-4), name


def drawing(seed: int) -> Context:
    """A context whose draws are those of `noise.insecure(seed)`."""
    room = copy_context()
    room.run(noise._insecure.set, noise._Seeded(seed))
    return room


# What is drawn for all at once is each one's own, of the size that it paid for.


def members_of(sizes: list[int], std: list[float]) -> list[Member]:
    """Members whose rows all hold their owner's number, from 1."""
    weights = {"weight": np.zeros((9, 1), np.float32), "bias": np.zeros(9, np.float32)}
    return [
        Member(Rows(torch.full((size, 1), float(i)), torch.full((size,), i)), weights, 1.0, one)
        for i, (size, one) in enumerate(zip(sizes, std, strict=True), 1)
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.sampled_from([0.01, 0.5, 1.0]))
def test_a_member_draws_from_its_own_rows_alone(sizes: list[int], rate: float) -> None:
    batch = Batches(members_of(sizes, [1.0] * len(sizes))).draw(rate)
    for i, size in enumerate(sizes):
        drawn = int(batch.real[i].sum())
        assert drawn == size if rate == 1 else drawn <= size
        assert batch.x[i][batch.real[i]].unique().tolist() == ([i + 1.0] if drawn else [])
        assert batch.y[i][batch.real[i]].unique().tolist() == ([i + 1] if drawn else [])
        assert not batch.x[i][~batch.real[i]].any()


def test_every_members_batches_are_poisson_samples() -> None:
    batches = Batches(members_of([30, 5, 0, 100], [1.0] * 4))
    counts = np.array([batches.draw(0.2).real.sum(1).numpy() for _ in range(2000)])
    for drawn, size in zip(counts.T, [30, 5, 0, 100], strict=True):
        expected = stats.binom(size, 0.2).pmf(np.arange(size + 1)) * len(drawn)
        found = np.bincount(drawn, minlength=size + 1)
        few = expected < 5
        joined = [np.append(a[~few], a[few].sum()) for a in (found, expected)]
        assert size == 0 or stats.chisquare(*[a[joined[1] > 0] for a in joined]).pvalue > 1e-6
    assert abs(np.corrcoef(counts[:, 0], counts[:, 3])[0, 1]) < 0.12


@pytest.mark.parametrize("std", [[2.0] * 4, [2.0, 0.5, 2.0, 7.0]])
def test_every_member_has_noise_of_its_own_size(std: list[float]) -> None:
    made = np.zeros((4, 1550), dtype=np.float32)
    privatise(made, members_of([0] * 4, std))
    for one, row in zip(std, made.astype(np.float64), strict=True):
        assert np.array_equal(row, np.rint(row / noise.grid(one)) * noise.grid(one))
        assert stats.kstest(row / one, "norm").pvalue > 1e-6
        low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], row.size)
        assert low < ((row / one) ** 2).sum() < high
    assert np.abs(np.corrcoef(made) - np.eye(4)).max() < 0.15


def test_updates_of_members_without_rows_are_their_noise_on_the_public_grid() -> None:
    stack, std = Stack(nn.Linear(1, 9), (1,)), [0.7, 0.05, 3.0]
    plan = load_plan("digits", ["lr=1", "clip=1", "sigma=1", "rows=3", "steps=1"])
    keys: dict[str, Any] = {"rate": 1.0, "steps": 1, "round": 1, "private": True}
    updates = [
        [np.concatenate([a.reshape(-1) for a in trained.update.values()]) for trained in
         train_together(stack, members_of([0, 2, 0], std), digits(), plan, **keys)]
        for _ in range(300)
    ]  # fmt: skip
    for i, one in enumerate(std):
        moved = np.array([update[i] for update in updates], dtype=np.float64)
        parts = moved / noise.grid(one)
        assert np.array_equal(parts, np.rint(parts))
        if i != 1:
            assert stats.kstest(moved.ravel() / one, "norm").pvalue > 1e-6


def test_what_cannot_be_trained_together_is_refused() -> None:
    stack = Stack(nn.Linear(1, 9), (1,))
    plan = load_plan("digits", ["sigma=1", "rows=3"])
    keys: dict[str, Any] = {"rate": 1.0, "steps": 1, "round": 1, "private": True}
    with pytest.raises(TrainingError, match="no noise"):
        train_together(stack, members_of([3], [1.0]), digits(), plan, **keys | {"private": False})
    with pytest.raises(TrainingError, match="clip"):
        train_together(stack, members_of([3], [1.0]), digits(), replace(plan, clip=None), **keys)
    mean = replace(digits(), loss=lambda out, y: squared_error(out[:, :1], y.float()).mean())
    with pytest.raises(ModelError, match="loss"):
        train_together(stack, members_of([3], [1.0]), mean, plan, **keys)


def test_rows_that_cannot_be_trained_fail_as_a_code_and_stay_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(outputs: Tensor, y: Tensor) -> Tensor:
        raise ValueError("secret patient value")

    wrong: Task = replace(digits(), loss=broken)
    monkeypatch.setattr("client.app.task", lambda name, schema: wrong)
    run = played(tmp_path / "run", "vector", "digits", FEW)
    assert run["reason"] == "failed"
    assert [len(entries) for entries in run["events"].values()] == [1] * 6
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert not any(b"secret" in p.read_bytes() for p in files)
