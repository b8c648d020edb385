"""The plan: parsed once, refused by name where it is wrong, the same for doing and for paying."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.plan import PlanError
from privacy.contract.plan_file import from_json, load_plan, parse, shipped, with_counts
from privacy.contract.rules.table import warnings


@pytest.mark.long
def test_every_shipped_plan_parses_and_survives_its_own_toml_and_json() -> None:
    assert {"digits", "fashion-mnist", "heart-disease", "adult"} <= set(shipped())
    for name in shipped():
        plan = load_plan(name)
        assert parse(tomllib.loads(plan.to_toml())) == plan
        assert from_json(plan.to_json()).digest == plan.digest


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("nonsense=1", "nonsense"),
        ("rate=1.5", "rate"),
        ("rate=0", "rate"),
        ("rate=nan", "rate"),
        ("clip=0", "clip"),
        ("clip=-1", "clip"),
        ("rounds=0", "rounds"),
        ("rounds=2.5", "rounds"),
        ("rounds=true", "rounds"),
        ("steps=0", "steps"),
        ("optimizer=adamax", "optimizer"),
        ("schedule=warm", "schedule"),
        ("split=dirichlet", "split"),
        ("split=dirichlet:0", "split"),
        ("split=labels:0", "split"),
        ("unit=household", "unit"),
        ("epsilon=0", "epsilon"),
        ("epsilon=-1", "epsilon"),
        ("delta=0", "delta"),
        ("delta=1", "delta"),
        ("lr=0", "lr"),
        ("momentum=1", "momentum"),
        ("mu=0.1", "mu"),
        ("wire=float16", "wire"),
        ("weights=size", "weights"),
        ("metrics=1", "metrics"),
        ('metrics=["names"]', "metrics"),
        ('metrics=["loss"]', "metrics_sigma"),
        ("clip_quantile=0.5", "clip_quantile"),
        ("unknown=1", "unknown key unknown, the keys are aggregation, augment, average, "),
        ("epsilonn=1", "unknown key epsilonn, did you mean epsilon?"),
        ("simulation.engin=1", "unknown key simulation.engin, did you mean simulation.engine?"),
        ("site.a.limits=1", "unknown key site.a.limits, did you mean site.a.limit?"),
        ("operation.min_site=1", "did you mean operation.min_sites?"),
        ("min_sites=9", "min_sites"),
        ("cohort=0", "cohort"),
        ("cohort=9", "cohort"),
        ("site.a.budget=1", "site.a.budget"),
        ("site=1", "site"),
        ("simulation.engine=warp", "simulation.engine"),
        ("simulation.dropout=1", "simulation.dropout"),
        ("rows=0", "rows"),
        ("schema=absent.toml", "schema"),
        ("rounds", "--set"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(override: str, key: str) -> None:
    with pytest.raises(PlanError) as error:
        load_plan("digits", [override])
    assert key in str(error.value)
    assert any(word in str(error.value) for word in ("must be", "is missing", "unknown key"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["task", "rounds", "rate", "rows", "lr", "clip", "delta", "sites"])
def test_a_missing_key_is_named(key: str) -> None:
    table = tomllib.loads(load_plan("digits").to_toml())
    del table[key]
    with pytest.raises(PlanError, match=key):
        parse(table)


def test_exactly_one_of_sigma_and_epsilon_is_given() -> None:
    table = tomllib.loads(load_plan("digits").to_toml())
    with pytest.raises(PlanError, match="exactly one"):
        parse(table | {"sigma": 1.0})
    del table["epsilon"]
    with pytest.raises(PlanError, match="exactly one"):
        parse(table)


def test_an_override_of_sigma_takes_the_place_of_epsilon() -> None:
    assert load_plan("digits", ["sigma=2.0"]).epsilon is None
    with pytest.raises(PlanError, match="exactly one"):
        load_plan("digits", ["sigma=2.0", "epsilon=1.0"])


def test_without_privacy_no_number_pretends_otherwise() -> None:
    plan = load_plan("digits", ["unit=none"])
    assert plan.event("site-0") is None
    assert plan.events_of_round("site-0") == ()
    assert plan.epsilon_after("site-0", 3) is None
    with pytest.raises(PlanError, match="epsilon"):
        parse(tomllib.loads(plan.to_toml()) | {"epsilon": 1.0})


@pytest.mark.long
def test_the_event_comes_from_the_same_value_as_the_training() -> None:
    plan = load_plan("digits", ["sigma=1.5", "steps=4", "rate=0.1", "site.b.epsilon=1.0"])
    assert plan.event("a") == Event("record", 1.5, 0.1, 4)
    assert plan.event("b") != plan.event("a")
    assert plan.epsilon_after("b", plan.rounds) == pytest.approx(1.0, rel=5e-3)


def test_a_calibrated_run_costs_what_was_asked_and_no_more() -> None:
    plan = load_plan("digits", ["epsilon=2.0", "rounds=50"])
    total = plan.nominal_epsilon_after(50)
    assert total is not None
    assert 0.995 * 2 <= total <= 2


def test_the_adaptive_clip_is_paid_from_the_same_epsilon() -> None:
    plan = load_plan(
        "digits",
        [
            "unit=client",
            "delta=3e-4",
            "epsilon=8",
            "clip_quantile=0.5",
            "clip_sigma=20.0",
            "rounds=10",
        ],
    )
    events = [e for e in plan.nominal_events() for _ in range(10)]
    assert len(plan.nominal_events()) == 2
    assert 0.99 * 8 <= spent(events, 3e-4) <= 8


def test_delta_must_be_below_one_over_the_rows() -> None:
    plan = load_plan("digits")
    with pytest.raises(PlanError, match="1/rows"):
        with_counts(plan, {"site-0": 5000})


def test_the_digest_covers_what_binds_the_sites_and_nothing_else() -> None:
    plan = load_plan("digits")
    for free in ("simulation.workers=7", "operation.keep=3", "operation.stop_after=2"):
        assert load_plan("digits", [free]).digest == plan.digest
    for free in ("min_sites=2", "operation.min_sites=2", "operation.round_timeout=60"):
        assert load_plan("digits", [free]).digest == plan.digest
    assert load_plan("digits", ["lr=0.123"]).digest != plan.digest
    assert load_plan("digits", ["purpose=another"]).digest != plan.digest
    assert replace(plan, lr=0.123).digest == load_plan("digits", ["lr=0.123"]).digest


def test_a_schema_travels_inside_the_plan(tmp_path: Path) -> None:
    (tmp_path / "people.toml").write_text('label = "sick"\n')
    text = load_plan("digits").to_toml().replace('task = "digits"', 'task = "table"')
    (tmp_path / "mine.toml").write_text('schema = "people.toml"\n' + text)
    plan = load_plan(tmp_path / "mine.toml")
    assert plan.schema == 'label = "sick"\n'
    again = parse(tomllib.loads(plan.to_toml()))
    assert again.schema == plan.schema
    assert again.digest == plan.digest


@pytest.mark.parametrize("text", ["", "[", "task = 3", "x = 1", "[site]\na = 1", "\x00"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(PlanError):
        load_plan(tmp_path / "plan.toml")


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"task": "digits"}', "{" * 100])
def test_a_message_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        from_json(text)


KEPT = """
task = "digits"
rounds = 30
rate = 1.0
rows = "actual"
lr = 3
sites = 5
clip = 1.0
unit = "record"
epsilon = 3.0
delta = 0.000348
split = "iid"
steps = 1
optimizer = "sgd"
momentum = 0.9
schedule = "constant"
l2 = 0.0
aggregation = "fedavg"
mu = 0.0
server_lr = 1.0
server_momentum = 0.0
average = true
weights = "equal"
clip_lr = 0.2
metrics = []
metrics_clip = 5.0
precision = "float32"
wire = "float32"
min_sites = 2
seed = 0
purpose = "Recognise hand-written digits; a demonstration on public data."

[site.site-1]
epsilon = 2

[simulation]
engine = "serial"
workers = 3
dropout = 0.0
slow = 0.0
"""
DIGEST_0_1_0 = "937205fff6493f0b0c884e0259ae7026c56f624e36bb4250979a08da77a89b89"


def test_a_plan_that_0_1_0_kept_is_read_and_keeps_its_digest(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(KEPT)
    plan = load_plan(tmp_path / "plan.toml")
    assert plan.format == 1
    assert plan.operation.min_sites == 2
    assert plan.digest == DIGEST_0_1_0
    assert from_json(plan.to_json()).digest == DIGEST_0_1_0
    assert from_json(plan.to_json()).operation.min_sites == 2
    again = parse(tomllib.loads(plan.to_toml()))
    assert again == plan
    assert again.digest == DIGEST_0_1_0


def test_a_plan_of_format_2_names_its_operation_in_a_table() -> None:
    table = tomllib.loads(load_plan("digits").to_toml())
    assert table["format"] == 2
    with pytest.raises(PlanError, match=r"min_sites, it must be in the table \[operation\]"):
        parse(table | {"min_sites": 2})


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["optimizer=momentum"], "with steps = 1 it is plain SGD"),
        (["optimizer=adam"], "with steps = 1 it is sign descent"),
        (["limit=4"], "limit = 4 never binds"),
        (["metrics_sigma=3"], "metrics_sigma has no effect"),
    ],
)
def test_a_plan_that_does_less_than_it_says_is_warned_of(sets: list[str], words: str) -> None:
    (text,) = warnings(load_plan("digits", sets))
    assert words in text


def test_the_shipped_plans_do_what_they_say() -> None:
    for name in shipped():
        assert warnings(load_plan(name)) == ()
    assert warnings(load_plan("digits", ["optimizer=adam", "steps=2"])) == ()
