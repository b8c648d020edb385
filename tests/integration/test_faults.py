"""Kills, hangs, lost budgets and older ledgers, with real processes on 127.0.0.1."""

import datetime
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.patience import patience
from tests.support.processes import BIN, World, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
# Rounds of seconds, so that a kill can come in the middle; what is paid twice still fits.
LONG = ("--set", "steps=1000", "--set", "sigma=100")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def spent_and_not_trained(world: World, number: int) -> bool:
    """Whether a site is in the middle of its training: paid, and not yet done."""
    site = list(world.sites)[number]
    return len(world.paid(number)) > len(world.said(site, "trained"))


def check(world: World, rounds: int, kept: list[dict[str, object]] | None = None) -> None:
    """The history is whole and extends what was kept; nothing left a site unpaid."""
    history = world.history()
    assert [line["round"] for line in history] == list(range(1, rounds + 1))
    assert history[: len(kept or [])] == (kept or [])
    for number, site in enumerate(world.sites):
        answered = {n for n, said in enumerate(world.statuses(site), 1) if said == "trained"}
        assert answered <= set(world.paid(number))


def test_killed_clients_and_a_killed_coordinator_come_back(world: World) -> None:
    args = ("--min-sites", 2, "--set", "rounds=30", "--set", "steps=300", "--round-timeout", 60)
    with told(world):
        clients = [world.client(number) for number in range(3)]
        server = world.server(*args)
        world.until(lambda: len(world.history()) >= 3)
        world.kill(clients[0])
        clients[0] = world.client(0)
        before = len(world.history())
        world.until(lambda: len(world.history()) >= before + 2)
        world.kill(server)
        kept = world.history()
        world.until(lambda: len(world.said("north", "disconnected")) > 0)
        server = world.server(*args, "--resume")
        assert server.wait(patience(240)) == 0
    check(world, 30, kept)
    assert "trained" in world.statuses("north")[len(kept) :]


def test_a_client_killed_before_during_or_after_training_is_back_within_15_seconds(
    world: World,
) -> None:
    """The round ends with it, since its request is given again; a kill in training is paid for."""

    def back(began: float) -> None:
        now = datetime.datetime.fromtimestamp(began, datetime.UTC).isoformat()

        def answered() -> list[str]:
            found = world.said("north", "trained") + world.said("north", "reply_resent")
            return [one["time"] for one in found if one["time"] > now]

        world.until(answered)
        took = datetime.datetime.fromisoformat(answered()[0]).timestamp() - began
        assert took < patience(15), f"it took {took:.1f} s"

    with told(world):
        others = [world.client(number) for number in (1, 2)]
        server = world.server("--min-sites", 3, "--set", "rounds=8", *LONG)
        world.until(
            lambda: "site=south" in world.log("server") and "site=east" in world.log("server")
        )
        north = world.client(0)
        world.until(lambda: world.said("north", "connected"))
        world.kill(
            north
        )  # before: it is connected, and was asked nothing or has only begun to read
        began = time.time()
        north = world.client(0)
        back(began)
        entries = len(world.paid(0))
        world.until(lambda: len(world.paid(0)) > entries)
        world.kill(north)  # during: the next round is paid for, and takes seconds
        during = world.paid(0)[-1]
        assert not world.said("north", "trained", round=during)
        began = time.time()
        north = world.client(0)
        back(began)
        done = len(world.said("north", "trained"))
        world.until(lambda: len(world.said("north", "trained")) > done)
        world.kill(north)  # after: its reply is on its way, or not
        began = time.time()
        north = world.client(0)
        back(began)
        assert server.wait(patience(240)) == 0
        assert all(other.poll() is None for other in others)
    check(world, 8)
    assert world.statuses("north") == ["trained"] * 8
    paid = Counter(world.paid(0))
    assert set(paid) == set(range(1, 9))
    assert paid[during] == 2, "what was killed in training is a release of its own"
    assert sum(paid.values()) <= 10
    for number in (1, 2):
        assert world.paid(number) == list(range(1, 9))


def test_a_reply_given_before_the_coordinator_died_is_sent_again_unpaid(world: World) -> None:
    """North and south have answered, east hangs: the round is asked again, and paid once."""
    args = ("--min-sites", 3, "--set", "rounds=5", *LONG)
    with told(world):
        clients = [world.client(number) for number in range(3)]
        server = world.server(*args)
        world.until(lambda: world.paid(2)[-1:] == [2])
        clients[2].send_signal(signal.SIGSTOP)
        world.until(lambda: all(world.said(s, "trained", round=2) for s in ("north", "south")))
        world.kill(server)
        kept = world.history()
        assert len(kept) == 1
        assert (world.paid(0), world.paid(1)) == ([1, 2], [1, 2])
        server = world.server(*args, "--resume")
        world.until(lambda: world.log("server").count("connected site=north") >= 2)
        clients[2].send_signal(signal.SIGCONT)
        assert server.wait(patience(240)) == 0
    check(world, 5, kept)
    for number, site in enumerate(("north", "south")):
        assert len(world.said(site, "reply_resent", round=2)) == 1
        assert world.paid(number) == [1, 2, 3, 4, 5]
    assert world.statuses("east") == ["trained"] * 5


def test_a_client_that_hangs_is_gone_on_without_and_its_late_answer_is_not_counted(
    world: World,
) -> None:
    args = ("--min-sites", 2, "--set", "rounds=8", "--round-timeout", 25, *LONG)
    with told(world):
        clients = [world.client(number) for number in range(3)]
        server = world.server(*args)
        world.until(lambda: "trained" in world.statuses("east") and spent_and_not_trained(world, 2))
        clients[2].send_signal(signal.SIGSTOP)
        missed = world.paid(2)[-1]
        world.until(lambda: len(world.history()) >= missed)
        assert world.statuses("east")[missed - 1] == "no-answer"
        clients[2].send_signal(signal.SIGCONT)
        assert server.wait(patience(240)) == 0
    check(world, 8)
    assert world.statuses("east").count("no-answer") >= 1
    assert "trained" in world.statuses("east")[missed:], "it takes part again"
    assert world.paid(2).count(missed) == 1
    said = world.log("server")
    assert f"round={missed} site=east answer=no-answer" in said
    assert "reply_late site=east" in said or "reply_missing site=east" in said
    assert all(world.statuses(site) == ["trained"] * 8 for site in ("north", "south"))


def test_when_all_budgets_are_spent_the_run_stops_with_3(world: World) -> None:
    with told(world):
        for number in range(3):
            world.client(number)
        server = world.server("--min-sites", 3, "--set", "rounds=30", "--set", "limit=1.0")
        assert server.wait(patience(240)) == 3
    assert world.summary()["reason"] == "budget"
    assert 0 < world.summary()["epsilon"] <= 1.0
    assert "budget" in world.log("server")


def test_when_all_sites_fail_the_run_stops_with_1_and_says_why(world: World) -> None:
    """Adult is no embedded task: no site has rows of its schema, and none pays for it."""
    with told(world):
        clients = [world.client(number) for number in range(3)]
        server = world.server("--min-sites", 3, "--set", "rounds=3", plan="adult")
        assert server.wait(patience(240)) == 1
        assert all(client.poll() is None for client in clients), "the clients stay"
    each = "; ".join(f"{site}: schema-differs" for site in sorted(world.sites))
    why = f"0 of at least 3 sites trained ({each})"
    assert (world.summary()["reason"], world.summary()["detail"]) == ("failed", why)
    assert f"failed: {why} after 0 rounds" in world.log("server")
    for number, site in enumerate(world.sites):
        assert world.said(site, "declined", reason="schema-differs")
        assert f"round=1 site={site} answer=schema-differs" in world.log("server")
        assert world.paid(number) == []
    assert "Traceback" not in world.log("server")


def test_an_older_copy_of_a_ledger_is_refused_until_it_is_acknowledged(world: World) -> None:
    args = ("--min-sites", 2, "--round-timeout", 60)
    with told(world):
        clients = [world.client(number) for number in range(3)]
        path = world.sites["north"] / "ledgers"
        server = world.server(*args, "--set", "rounds=12")
        world.until(lambda: len(world.history()) >= 2)
        shutil.copytree(path, world.folder / "copy")
        assert server.wait(patience(240)) == 0
        clients[0].terminate()
        assert clients[0].wait(patience(60)) == 0
        shutil.rmtree(path)
        shutil.copytree(world.folder / "copy", path)
        shutil.rmtree(world.sites["north"] / "replies")
        clients[0] = world.client(0)
        again = (*args, "--set", "rounds=3", "--name", "two", "--min-sites", 3)
        second = world.server(*again)
        world.until(lambda: "north: ledger-untrusted" in world.log("server"))
        assert world.history("two") == []
        world.site("north", "ledger", "acknowledge")
        assert second.wait(patience(240)) == 0
    assert len(world.history("two")) == 3


def test_a_client_without_a_policy_refuses_and_says_how(world: World, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    north, where = world.sites["north"], f"127.0.0.1:{world.port}"
    words = ("run", "--dir", north, "--server", where, "--data", tmp_path / "rows.csv")
    with told(world):
        assert world.start("north.log", BIN / "tacit-client", *words).wait(patience(60)) == 2
    assert "tacit-client policy new" in world.log("north")
