"""A round as mathematics, by hand."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.arrays import Arrays, WireError, decode, digest, encode
from privacy.contract.keys.types import PlanError
from privacy.contract.plan_file import load_plan
from server.rounds.aggregation import State, Update, combine, start


def arrays(*values: float) -> Arrays:
    return {"w": np.array(values, np.float32)}


def test_equal_weights_average_the_updates() -> None:
    plan = load_plan("digits")
    state = start(arrays(1, 2), plan)
    after = combine(state, [Update("a", arrays(2, 0)), Update("b", arrays(0, 4))], plan)
    assert after.round == 1
    np.testing.assert_allclose(after.weights["w"], [2, 4])
    np.testing.assert_allclose(state.weights["w"], [1, 2])


def test_an_update_is_forgotten_before_the_next_is_asked_for() -> None:
    plan = load_plan("digits")
    alive: list[bool] = []

    def updates() -> Iterator[Update]:
        for number in range(4):
            update = Update(str(number), arrays(number, number))
            kept = weakref.ref(update.arrays["w"])
            yield update
            del update
            alive.append(kept() is not None)

    after = combine(start(arrays(0, 0), plan), updates(), plan)
    assert alive == [False] * 4
    np.testing.assert_allclose(after.weights["w"], plan.server_lr * np.array([1.5, 1.5]))


def test_the_updates_themselves_are_left_as_they_were() -> None:
    same = arrays(1, 2)
    combine(
        start(arrays(0, 0), load_plan("digits")),
        [Update(s, same) for s in "abc"],
        load_plan("digits"),
    )
    np.testing.assert_array_equal(same["w"], [1, 2])


def test_public_rows_weigh_the_updates() -> None:
    plan = load_plan("digits", ["weights=rows", "site.a.rows=300", "site.b.rows=100"])
    after = combine(start(arrays(0), plan), [Update("a", arrays(4)), Update("b", arrays(0))], plan)
    np.testing.assert_allclose(after.weights["w"], [3])


def test_momentum_at_the_server_adds_up_and_is_scaled() -> None:
    plan = load_plan("digits", ["server_momentum=0.5", "server_lr=0.1"])
    first = combine(start(arrays(0), plan), [Update("a", arrays(10))], plan)
    np.testing.assert_allclose(first.weights["w"], [1.0])
    second = combine(first, [Update("a", arrays(10))], plan)
    np.testing.assert_allclose(second.weights["w"], [2.5])


def test_the_released_model_is_the_running_mean_where_the_plan_averages() -> None:
    plan = load_plan("digits", ["average=true"])
    first = combine(start(arrays(0), plan), [Update("a", arrays(10))], plan)
    np.testing.assert_allclose(first.released()["w"], [0.1 * 0 + 0.9 * 10])
    np.testing.assert_allclose(first.weights["w"], [10])


def test_the_client_unit_divides_by_who_was_asked_and_clips_again() -> None:
    plan = load_plan("digits", ["unit=client", "sigma=1e-6", "clip=1.0"])
    state = start(arrays(0, 0), plan)
    after = combine(
        state, [Update("a", arrays(30, 40)), Update("b", arrays(0, 0.5))], plan, sites=4
    )
    np.testing.assert_allclose(after.weights["w"], [0.6 / 4, 1.3 / 4], atol=1e-4)


def test_an_update_that_is_not_finite_moves_nothing_in_the_client_unit() -> None:
    plan = load_plan("digits", ["unit=client", "sigma=1e-6", "clip=1.0"])
    after = combine(start(arrays(0), plan), [Update("a", arrays(np.nan))], plan)
    np.testing.assert_allclose(after.weights["w"], [0], atol=1e-4)


@pytest.mark.parametrize(("below", "grows"), [(-0.5, True), (0.5, False)])
def test_the_adaptive_clip_moves_towards_the_quantile(below: float, grows: bool) -> None:
    """All norms above the clip: it is too small and grows; all below: it shrinks."""
    plan = load_plan("digits", ["unit=client", "sigma=1", "clip_quantile=0.5", "clip_sigma=1e-6"])
    updates = [Update(str(i), arrays(1), below) for i in range(10)]
    after = combine(start(arrays(0), plan), updates, plan, sites=10)
    assert after.clip is not None
    assert (after.clip > 1.0) == grows
    assert after.clip == pytest.approx(np.exp(0.2 * (0.5 if grows else -0.5)), rel=1e-4)


def test_no_update_is_an_error_and_not_a_round() -> None:
    plan = load_plan("digits")
    with pytest.raises(ValueError, match="at least one"):
        combine(start(arrays(0), plan), [], plan)


@given(st.booleans(), st.booleans())
def test_a_state_survives_its_checkpoint(average: bool, momentum: bool) -> None:
    overrides = [f"average={str(average).lower()}", f"server_momentum={0.5 if momentum else 0}"]
    plan = load_plan("digits", overrides)
    state = combine(start(arrays(1, 2), plan), [Update("a", arrays(3, 4))], plan)
    assert state.to_arrays()["server/round"].tolist() == [state.round] == [1]
    again = State.from_arrays(state.to_arrays(), 1)
    for name in ("weights", "velocity", "mean"):
        one, other = getattr(state, name), getattr(again, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one["w"], other["w"])


SHAPES = {"w": (2, 3), "b": ()}
VALUES: Arrays = {
    "w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "b": np.array(0.5, np.float32),
}


@pytest.mark.parametrize(("kind", "error"), [("float32", 0), ("bfloat16", 4e-3), ("int8", 1e-2)])
def test_arrays_survive_the_wire(kind: str, error: float) -> None:
    found = decode(encode(VALUES, kind), SHAPES, kind)
    for name, value in VALUES.items():
        np.testing.assert_allclose(found[name], value, atol=error + 1e-9)


def test_int8_rounds_without_bias() -> None:
    value = {"w": np.array([1.0, 0.3], np.float32)}
    mean = np.mean(
        [decode(encode(value, "int8"), {"w": (2,)}, "int8")["w"] for _ in range(2000)], 0
    )
    np.testing.assert_allclose(mean, value["w"], atol=4e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"w": VALUES["w"]},
        VALUES | {"extra": VALUES["b"]},
        {"w": VALUES["w"].T, "b": VALUES["b"]},
        {"w": VALUES["w"] * np.float32(np.nan), "b": VALUES["b"]},
        {"w": VALUES["w"], "b": np.array(np.inf, np.float32)},
    ],
)
def test_arrays_that_were_not_expected_are_refused(wrong: Arrays) -> None:
    with pytest.raises(WireError):
        decode(encode(wrong), SHAPES)


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"\xff" * 64, b"\x00" * 10_000_000])
def test_bytes_that_are_no_arrays_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data, SHAPES)


def test_the_digest_of_weights_changes_with_any_of_them() -> None:
    other = {"w": VALUES["w"] + np.float32(1e-7), "b": VALUES["b"]}
    assert digest(encode(VALUES)) != digest(encode(other))
    assert digest(encode(VALUES)) == digest(encode(dict(VALUES)))


def test_a_late_update_weighs_less_by_its_age() -> None:
    plan = load_plan("digits", ["server_lr=1"])
    updates = [Update("a", arrays(3)), Update("b", arrays(9), age=3)]
    after = combine(start(arrays(0), plan), updates, plan)
    np.testing.assert_allclose(after.weights["w"], [(3 + 9 / 2) / 1.5])


def test_a_median_and_a_trimmed_mean_leave_out_what_lies_outside() -> None:
    updates = [Update(str(i), arrays(v, -v)) for i, v in enumerate((1, 2, 3, 6, 1000))]
    plans = {
        key: load_plan("digits", [f"combine={key}", "trim=0.2", "server_lr=1"])
        for key in ("median", "trimmed-mean")
    }
    state = start(arrays(0, 0), plans["median"])
    median = combine(state, updates, plans["median"])
    np.testing.assert_allclose(median.weights["w"], [3, -3])
    trimmed = combine(state, updates, plans["trimmed-mean"])
    np.testing.assert_allclose(trimmed.weights["w"], [11 / 3, -11 / 3], rtol=1e-6)


@pytest.mark.parametrize("keys", [("unit=client",), ("weights=rows",)], ids=["client", "weights"])
def test_a_median_is_refused_where_sites_do_not_count_alike(keys: tuple[str, ...]) -> None:
    with pytest.raises(PlanError, match=r'combine = "median"|combine must be'):
        load_plan("digits", ["combine=median", *keys])


def test_new_keys_at_their_defaults_leave_a_plans_digest_as_it_was() -> None:
    assert "combine" not in load_plan("digits").to_json()
    assert "combine" in load_plan("digits", ["combine=median"]).to_json()
