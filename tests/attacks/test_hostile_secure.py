"""A lying coordinator against real sites: whatever it changes, nobody masks, pays or reveals."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from privacy.contract.policy import Policy
from privacy.identity.keys import new_signing_key, signing_public
from privacy.secagg.masks import Words
from privacy.secagg.messages import list_text, map_text, names_text, read_list, read_map
from privacy.secagg.party import SEALED_BYTES
from tests.support.secure_sites import NAMES, POLICY, SecureSites

Change = Callable[[dict[str, Any]], dict[str, Any]]


def changed(message: Message, change: Change) -> Message:
    """The message with other fields in its request."""
    content = RecordDict(dict(message.content))
    content["request"] = ConfigRecord(change(dict(message.content["request"])))  # type: ignore[arg-type]
    return Message(
        content,
        message.metadata.dst_node_id,
        message.metadata.message_type,
        group_id=message.metadata.group_id,
    )


def lies(world: SecureSites, stage: str, change: Change, to: tuple[str, ...] = NAMES) -> None:
    def tamper(site: str, at: str, message: Message) -> Message:
        if at != stage or site not in to:
            return message
        lie = changed(message, change)
        lie.metadata.__dict__["_message_id"] = message.metadata.message_id
        return lie

    world.tamper = tamper


def other_key(fields: dict[str, Any]) -> dict[str, Any]:
    listed = read_list(fields["keys"])
    forged = replace(listed[2], masking=bytes(range(32)))
    return fields | {"keys": list_text([*listed[:2], forged, *listed[3:]])}


def shorter(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"keys": list_text(read_list(fields["keys"])[:2])}


def unsigned(fields: dict[str, Any]) -> dict[str, Any]:
    signed = read_map(fields["agreements"], 64)
    return fields | {"agreements": map_text(signed | {"south": bytes(64)})}


def no_share(fields: dict[str, Any]) -> dict[str, Any]:
    sealed = read_map(fields["sealed"], SEALED_BYTES)
    return fields | {"sealed": map_text(dict.fromkeys(sealed, bytes(SEALED_BYTES)))}


def one_gone(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"survivors": names_text([n for n in NAMES if n != "west"])}


def few(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"survivors": names_text(NAMES[:2])}


def own_signature(fields: dict[str, Any]) -> dict[str, Any]:
    signed = read_map(fields["signatures"], 64)
    return fields | {"signatures": map_text(dict.fromkeys(signed, bytes(64)))}


def another_attempt(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"attempt": "0" * 32}


@pytest.mark.parametrize(
    ("stage", "change", "code", "spends"),
    [
        ("shares", other_key, "bad-keys", 0),
        ("shares", shorter, "wrong-party-list", 0),
        ("shares", another_attempt, "out-of-order", 0),
        ("masked", unsigned, "wrong-party-list", 0),
        ("masked", no_share, "bad-shares", 0),
        ("masked", another_attempt, "out-of-order", 0),
        ("survivors", few, "wrong-survivors", 1),
        ("survivors", another_attempt, "out-of-order", 1),
        ("reveal", own_signature, "wrong-survivors", 1),
        ("reveal", another_attempt, "out-of-order", 1),
    ],
)
def test_every_site_refuses_the_lie(
    tmp_path: Path, stage: str, change: Change, code: str, spends: int
) -> None:
    world = SecureSites(tmp_path, "rounds=1")
    lies(world, stage, change)
    assert world.run().reason == "failed"
    assert world.run_folder.history() == []
    for name in NAMES:
        assert set(world.codes(name)) == {code}
        assert world.spends(name) == spends


def test_two_halves_that_are_told_different_survivors_reveal_nothing(tmp_path: Path) -> None:
    world = SecureSites(tmp_path, "rounds=1")
    lies(world, "survivors", one_gone, to=("east", "north"))
    assert world.run().reason == "failed"
    # Their signatures are of another list: the coordinator cannot show three of either.
    assert "reveal" not in {stage for _, stage in world.stages}


def test_a_claimed_dropout_refuses_for_itself(tmp_path: Path) -> None:
    world = SecureSites(tmp_path, "rounds=1")
    lies(world, "survivors", one_gone)
    assert world.run().reason == "failed"
    assert world.codes("west") == ["wrong-survivors"]


def test_no_masked_update_leaves_twice(tmp_path: Path) -> None:
    """The same TRAIN request again, and every other message again, is out of order."""
    world, seen = SecureSites(tmp_path, "rounds=1"), list[Message]()
    world.tamper = lambda site, stage, message: (
        (
            seen.append(message) if site == "east" else None  # type: ignore[func-returns-value]
        )
        or message
    )
    assert world.run().reason == "done"
    before = world.spends("east")
    for message in seen:
        world.waiting.append(("x", "east", message))
        world.tamper = lambda site, stage, again: again
        collected = world.collect()
        assert collected is not None
        _, reply = collected
        assert reply.content["reply"]["status"] == "declined"  # type: ignore[index]
        assert reply.content["reply"]["reason"] == "out-of-order"  # type: ignore[index]
        assert "arrays" not in reply.content
    assert world.spends("east") == before == 1


def test_a_coordinator_that_asks_for_the_bare_update_gets_none(tmp_path: Path) -> None:
    """What a simulation without masks does is no way around them: the site has the say."""
    world = SecureSites(tmp_path, "rounds=1", "simulation.masks=false")

    def bare(site: str, stage: str, message: Message) -> Message | None:
        return message if stage == "masked" else None

    world.tamper = bare
    assert world.run().reason == "failed"
    from server.rounds.job import Job, Model
    from server.rounds.loop import federate

    job = Job(world.plan, world.run_folder, world.grid, Model(lambda: initial(world)), masks=False)
    assert federate(job).reason == "failed"
    assert [world.spends(name) for name in NAMES] == [0, 0, 0, 0]


def initial(world: SecureSites) -> Any:
    from server.evaluation import initial_weights

    return initial_weights(world.plan)


@pytest.mark.parametrize(
    ("policy", "more", "reason"),
    [
        ({"epsilon_alone": 0.0}, (), "secure-not-allowed"),
        ({"min_parties": 5}, (), "too-few-parties"),
        ({"max_colluding": 2}, (), "too-many-colluding"),
        ({"parties": ()}, (), "parties-not-known"),
        ({"epsilon_alone": 0.5}, (), "budget-exhausted"),
    ],
)
def test_the_owner_s_policy_decides(
    tmp_path: Path, policy: dict[str, Any], more: tuple[str, ...], reason: str
) -> None:
    values = {name: getattr(POLICY, name) for name in POLICY.__dataclass_fields__}
    world = SecureSites(tmp_path, "rounds=1", *more, policy=Policy(**(values | policy)))
    world.run()
    assert [world.spends(name) for name in NAMES] == [0, 0, 0, 0]
    (answer,) = {
        facts["reason"] for name in NAMES for what, facts in world.heard[name] if what == "declined"
    }
    assert answer == reason


def test_a_plan_whose_key_of_this_site_is_not_its_own_is_refused(tmp_path: Path) -> None:
    """A coordinator that plays the others must name keys of its own for them, and for nobody else's
    site: each refuses a list in which its key is not its own."""
    world = SecureSites(tmp_path, "rounds=1")
    played = replace(world.plan.site_overrides("east"), key=signing_public(new_signing_key()))
    world.plan = replace(world.plan, site={**world.plan.site, "east": played})
    assert world.run().reason in ("done", "failed")
    assert world.spends("east") == 0


def test_what_leaves_is_uniform(tmp_path: Path) -> None:
    """One site's reply, as the coordinator has it: the chi-square of its bytes."""
    import numpy as np

    from privacy.audit.p_values import chi_square

    world, replies = SecureSites(tmp_path, "rounds=1"), list[Words]()
    collect = world.collect

    def watched() -> tuple[str, Message] | None:
        collected = collect()
        if collected is not None and "arrays" in collected[1].content:
            array = collected[1].content["arrays"]["update"]  # type: ignore[index]
            replies.append(np.frombuffer(array.data, dtype="<u4"))
        return collected

    world.collect = watched  # type: ignore[method-assign]
    assert world.run().reason == "done"
    counts = np.bincount(np.concatenate(replies).view(np.uint8), minlength=256)
    square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert chi_square(square, 255) > 1e-6
