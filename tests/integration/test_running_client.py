"""A site's owner speaks to the running client: approve, deny, pause, leave. Real processes."""

import json
from pathlib import Path

import pytest

from tests.support.patience import patience
from tests.support.processes import World, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_owner_approves_pauses_denies_and_leaves_while_the_client_runs(tmp_path: Path) -> None:
    world = World(tmp_path)
    args = ("--min-sites", 2, "--set", "rounds=4000", "--set", "sigma=100", "--set", "steps=200")

    def until(said: str) -> None:
        """The site's answer to some later round."""
        rounds = len(world.history())
        world.until(lambda: said in world.statuses("north")[rounds:])

    with told(world):
        limits = ("--epsilon", "8", "--delta", "1e-3", "--max-rounds-per-day", 10_000)
        world.site("north", "policy", "new", *limits)
        north = world.client(0)
        others = [world.client(1), world.client(2)]
        world.server(*args)
        until("plan-not-approved")
        assert world.paid(0) == []
        (asked,) = json.loads(world.site("north", "plans", "--json"))["plans"]
        assert asked["state"] == "asked"
        world.site("north", "approve", asked["plan"][:16])
        until("trained")
        assert world.paid(0)
        assert "paused" in world.site("north", "pause")
        until("paused")
        paid = world.paid(0)
        until("paused")
        assert world.paid(0) == paid, "a paused site spends nothing"
        assert north.poll() is None
        world.site("north", "pause", "--off")
        until("trained")
        world.site("north", "deny", asked["plan"][:16])
        until("plan-denied")
        assert "left" in world.site("north", "leave")
        assert north.wait(patience(30)) == 0
        assert world.said("north", "folder_left")
        assert world.said("north", "stopped")
        world.until(lambda: "disconnected site=north" in world.log("server"))
        rounds, paid = len(world.history()), world.paid(0)
        world.until(lambda: len(world.history()) > rounds + 1)
        assert set(world.statuses("north")[rounds:]) == {"plan-denied"}, "its last word stands"
        assert world.paid(0) == paid
        assert all(one.poll() is None for one in others)
        assert world.said("north", "declined", reason="paused")
