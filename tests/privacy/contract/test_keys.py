"""A plan cannot be built wrong, and no odd file or message of one is more than one line."""

import math
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.contract.plan import Operation, Plan, PlanError, Simulation, SitePlan
from privacy.contract.plan_file import from_json, load_plan, parse


def valid(**changes: Any) -> Plan:
    """A plan built by hand, as a program would."""
    keys: dict[str, Any] = {
        "task": "digits",
        "rounds": 3,
        "rate": 0.5,
        "rows": 100,
        "lr": 1.0,
        "sites": 2,
        "clip": 1.0,
        "sigma": 1.0,
        "delta": 1e-4,
    }
    return Plan(**(keys | changes))


DEEP: Any = []
for _ in range(5000):
    DEEP = [DEEP]
WRONG: tuple[Any, ...] = (
    math.nan,
    math.inf,
    -math.inf,
    True,
    "1",
    b"1",
    None,
    10**400,
    -1,
    [1],
    {},
    DEEP,
)


@pytest.mark.parametrize("key", ["rounds", "rate", "rows", "lr", "steps", "clip_lr", "seed", "l2"])
@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
def test_a_plan_cannot_be_built_wrong(key: str, value: Any) -> None:
    with pytest.raises(PlanError) as error:
        valid(**{key: value})
    assert str(error.value).startswith(f"{key} must be ")
    assert ", got " in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rate", 5e-324),
        ("rate", 1 + 1e-12),
        ("sigma", 5e-324),
        ("sigma", 1e9),
        ("epsilon", 1e7),
        ("delta", 1e-300),
        ("delta", 1.0),
        ("lr", 5e-324),
        ("lr", 1e300),
        ("clip", 1e-200),
        ("rounds", 1_000_001),
        ("steps", 1_000_001),
        ("rows", 1_000_000_001),
        ("seed", 2**63),
        ("sites", 100_001),
        ("purpose", "x" * 10_001),
        ("schema", "x" * 4_000_001),
        ("task", "x" * 65),
        ("split", "dirichlet:" + "1" * 400),
        ("format", 3),
        ("metrics", ("loss", "loss")),
        ("site", {"a": {"rows": 3}}),
        ("site", {"a/b": SitePlan()}),
        ("operation", {"min_sites": 1}),
        ("simulation", None),
    ],
)
def test_every_number_and_text_of_a_plan_has_a_bound(key: str, value: Any) -> None:
    sigma = {"sigma": None} if key == "epsilon" else {}
    with pytest.raises(PlanError, match=f"^{key} must be "):
        valid(**sigma, **{key: value})


def test_the_tables_of_a_plan_cannot_be_built_wrong_either() -> None:
    for build, key in (
        (lambda: Operation(min_sites=0), "operation.min_sites"),
        (lambda: Operation(keep=0), "operation.keep"),
        (lambda: Operation(round_timeout=math.nan), "operation.round_timeout"),
        (lambda: Simulation(dropout=1.0), "simulation.dropout"),
        (lambda: Simulation(engine="warp"), "simulation.engine"),  # type: ignore[arg-type]
        (lambda: SitePlan(rows=0), "site.rows"),
    ):
        with pytest.raises(PlanError, match=f"^{key} must be "):
            build()


def test_too_many_releases_to_account_are_refused() -> None:
    with pytest.raises(PlanError, match=r"rounds \* steps must be at most 1000000000"):
        valid(rounds=1_000_000, steps=1001)


def test_a_change_of_a_valid_plan_is_checked_again() -> None:
    with pytest.raises(PlanError, match="min_sites must be at most sites = 2, got 3"):
        replace(valid(), operation=Operation(min_sites=3))


TEXTS = [
    "a = " + "[" * 3000,
    "rounds = " + "9" * 5000,
    "a" * 9_000_000,
    'task = "digits"\nrounds = 1e400',
]


@pytest.mark.parametrize("text", TEXTS, ids=["deep", "huge integer", "huge file", "infinite"])
def test_a_hostile_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(PlanError) as error:
        load_plan(tmp_path / "plan.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "9" * 5000,
        '{"rate": NaN}',
        '{"rate": 1e400}',
        '{"a": ' + "[" * 900 + "]" * 900 + "}",
        '"' + "x" * 9_000_000 + '"',
    ],
    ids=["deep", "huge integer", "nan", "infinite", "nested", "huge"],
)
def test_a_hostile_message_is_one_line(text: str) -> None:
    with pytest.raises(PlanError) as error:
        from_json(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from([item.name for item in fields(Plan)]) | st.text(), value=JSON)
def test_whatever_a_key_says_a_plan_is_valid_or_refused(key: str, value: Any) -> None:
    table = tomllib.loads(load_plan("digits", ["sigma=1"]).to_toml())
    try:
        plan = parse({**table, key: value})
    except PlanError as error:
        assert "\n" not in str(error)
    else:
        assert parse(tomllib.loads(plan.to_toml())) == plan
        assert from_json(plan.to_json()).digest == plan.digest
