"""A round of secure aggregation over the real apps: whoever dies when, the right sum or none."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from client import secure_round
from privacy.secagg.masks import Words
from privacy.secagg.plan_ring import ring_of
from privacy.secagg.ring import Ring
from server.secure import combination
from server.secure.sums import SecureSum
from tests.support.secure_sites import NAMES, SecureSites

STAGES = ("keys", "shares", "masked", "survivors", "reveal")


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[Words]:
    """What every site adds, before its masks."""
    seen: list[Words] = []
    real = Ring.share

    def watched(ring: Ring, sums: np.ndarray) -> Words:
        words = real(ring, sums)
        seen.append(words.copy())
        return words

    monkeypatch.setattr(Ring, "share", watched)
    return seen


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[SecureSum]:
    """What the coordinator has read."""
    seen: list[SecureSum] = []
    real = combination.moved

    def combined(state: object, result: SecureSum, plan: object) -> object:
        seen.append(result)
        return real_combine(state, result, plan)  # type: ignore[arg-type]

    real_combine = combination.combine_sum
    monkeypatch.setattr("server.rounds.loop.combine_sum", combined)
    assert real is not None
    return seen


def added(shares: list[Words], plan: object, count: int) -> np.ndarray:
    ring = ring_of(plan, 650)  # type: ignore[arg-type]
    total = ring.zeros(650)
    for words in shares[-count:]:
        total += words
    return ring.value(total)


def test_the_coordinator_reads_the_sum_of_what_the_sites_added(
    tmp_path: Path, shares: list[Words], sums: list[SecureSum]
) -> None:
    world = SecureSites(tmp_path)
    assert world.run().reason == "done"
    assert [one.survivors for one in sums] == [NAMES, NAMES]
    assert (sums[-1].total == added(shares, world.plan, 4)).all()
    assert [world.spends(name) for name in NAMES] == [2, 2, 2, 2]
    line = world.run_folder.history()[-1]
    assert line["secure"]["survived"] == 4
    assert line["sites"]["east"]["epsilon_alone"] > line["sites"]["east"]["epsilon"] > 0


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("again", [False, True], ids=["stays away", "starts again"])
def test_a_site_that_is_killed_at_any_stage_leaves_the_right_sum(
    tmp_path: Path, stage: str, again: bool, shares: list[Words], sums: list[SecureSum]
) -> None:
    world, dead = SecureSites(tmp_path, "rounds=1"), set[str]()

    def killed(site: str, at: str, message: Message) -> Message | None:
        if (site, at) == ("south", stage) and not dead:
            world.kill(site)
            dead.add(site)
            return message if again else None
        return message if site not in dead or again else None

    world.tamper = killed
    assert world.run().reason == "done"
    (result,) = sums
    late = stage in ("survivors", "reveal")
    # Killed in time it is left out, or begins anew; killed later its update is in the sum.
    expected = (
        NAMES
        if late or (again and stage == "keys")
        else tuple(name for name in NAMES if name != "south")
    )
    assert result.survivors == expected
    assert (result.total == added(shares, world.plan, len(expected))).all()
    assert world.spends("east") == 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_coordinator_that_is_killed_resumes_with_fresh_keys_and_pays_anew(
    tmp_path: Path, stage: str, sums: list[SecureSum]
) -> None:
    world, seen = SecureSites(tmp_path, "rounds=1"), list[str]()

    class Killed(Exception):
        pass

    def at(site: str, which: str, message: Message) -> Message:
        seen.append(message.content["request"]["attempt"])  # type: ignore[index]
        if (site, which) == ("west", stage) and len(set(seen)) == 1:
            raise Killed
        return message

    world.tamper = at
    with pytest.raises(Killed):
        world.run()
    world.waiting.clear()
    assert world.run().reason == "done"
    assert len(sums) == 1
    assert len(set(seen)) == 2
    paid = 2 if stage in ("survivors", "reveal") else 1
    assert world.spends("east") == (2 if stage == "masked" else paid)
    assert not list((tmp_path / "run").rglob("*.reply"))


def test_two_that_are_missing_are_too_many_and_there_is_no_sum(
    tmp_path: Path, sums: list[SecureSum]
) -> None:
    world = SecureSites(tmp_path)
    world.tamper = lambda site, stage, message: (
        None if stage == "masked" and site in ("south", "west") else message
    )
    assert world.run().reason == "failed"
    assert sums == []
    assert "reveal" not in {stage for _, stage in world.stages}
    assert [world.spends(name) for name in NAMES] == [1, 1, 0, 0]


def test_a_site_that_declines_is_left_out_before_anybody_pays(
    tmp_path: Path, sums: list[SecureSum]
) -> None:
    world = SecureSites(tmp_path, "rounds=1")
    world.sites["north"].paused = lambda: True
    assert world.run().reason == "done"
    assert sums[0].survivors == ("east", "south", "west")
    assert world.run_folder.history()[0]["sites"]["north"]["reason"] == "paused"


def test_a_site_that_sends_garbage_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sums: list[SecureSum]
) -> None:
    world = SecureSites(tmp_path, "rounds=1")
    real = secure_round.keys_text
    monkeypatch.setattr(
        secure_round, "keys_text", lambda keys: "{}" if keys.site == "west" else real(keys)
    )
    assert world.run().reason == "done"
    assert sums[0].survivors == ("east", "north", "south")
    answer = world.run_folder.history()[0]["sites"]["west"]
    assert (answer["status"], answer["reason"]) == ("failed", "bad-reply")


def test_the_unit_client_is_protected_from_the_coordinator_too(
    tmp_path: Path, shares: list[Words], sums: list[SecureSum]
) -> None:
    world = SecureSites(
        tmp_path, "rounds=1", "unit=client", "steps=3", "weights=equal", "optimizer=sgd"
    )
    assert world.run().reason == "done"
    assert (sums[0].total == added(shares, world.plan, 4)).all()
    event = world.sites["east"].ledger.entries()[0].event  # type: ignore[union-attr]
    assert (event.unit, event.sigma, event.shares) == ("client", 3.0, 2)
