"""Relays over TLS: the model and the epsilons of direct sites, and what a relay's end does."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from privacy.report.recount import reckon
from privacy.report.sources import read
from server.relay.message import read_leaves
from server.relay.relay import Relay
from tests.support.patience import patience
from tests.support.relays import Tree, plan_for


def dies_after_its_sites(held: Relay) -> ClientApp:
    """A relay whose process ends between its sites' replies and its own."""
    app, first = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        first.append(held.trained(message.content))
        raise SystemExit

    @app.query("propose")
    def propose(message: Message, context: Context) -> Message:
        return Message(held.proposed(message.content), reply_to=message)

    return app


def names_a_site_twice(held: Relay) -> ClientApp:
    """A relay that counts its first site as two."""
    app = held.app()
    lying = ClientApp()

    @lying.train()
    def train(message: Message, context: Context) -> Message:
        reply = app(message, context)
        arrays = reply.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        leaves = read_leaves(arrays["sites"].data)
        data = json.dumps([asdict(one) for one in (*leaves, leaves[0])]).encode()
        arrays["sites"] = Array("uint8", (len(data),), "json", data)
        return reply

    @lying.query("propose")
    def propose(message: Message, context: Context) -> Message:
        return app(message, context)

    return lying


def test_two_relays_and_a_direct_site_make_the_model_of_five_direct_sites(tmp_path: Path) -> None:
    plan = plan_for(5)
    tree = Tree(tmp_path / "tree", {"east": "ab", "west": "cd"}, "e")
    with tree.running():
        outcome = tree.play(plan)
    assert outcome.reason == "done", outcome
    flat = Tree(tmp_path / "flat", {}, "abcde")
    with flat.running():
        expected = flat.play(plan)
    names = ["e", "east:a", "east:b", "west:c", "west:d"]
    for line, other in zip(outcome.history, expected.history, strict=True):
        assert {s: one["status"] for s, one in line["sites"].items()} == dict.fromkeys(
            names, "trained"
        )
        assert line["epsilon"] == other["epsilon"]
        by_own = {site.rpartition(":")[2]: one for site, one in line["sites"].items()}
        assert by_own == other["sites"]
    assert outcome.epsilons == {name: expected.epsilons[name.rpartition(":")[2]] for name in names}
    for name, array in flat.model().items():
        assert np.array_equal(array, tree.model()[name]), "bit for bit: the sums are exact"
    reckoning = reckon(read(tree.home / "runs" / "run"))
    assert not reckoning.problems, "the audit report is sound, and lists the sites behind relays"
    assert sorted(a.name for a in reckoning.accounts) == names
    for site in tree.sites.values():
        assert site.paid == [1, 2]
        (released,) = site.released
        assert all(np.array_equal(released[n], a) for n, a in tree.model().items())


def statuses(line: object) -> dict[str, str]:
    """Each site's status or reason in a round."""
    assert isinstance(line, dict)
    return {name: one["reason"] or one["status"] for name, one in line["sites"].items()}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_relay_that_dies_in_a_round_is_asked_again_and_its_sites_pay_once(tmp_path: Path) -> None:
    plan = plan_for(3)
    tree = Tree(tmp_path, {"east": "ab"}, "e")
    tree.apps["east"] = dies_after_its_sites
    with tree.running():
        site = tree.sites["east:a"]
        with tree.playing(plan) as play:
            assert site.asked.wait(patience(60))
            assert tree.logs["east"].wait("round_passed_on", patience(60))
            tree.stop("east")
            tree.apps.clear()
            tree.start("east")
            outcome = play()
    assert outcome.reason == "done", outcome
    assert [statuses(line) for line in outcome.history] == [
        dict.fromkeys(["e", "east:a", "east:b"], "trained")
    ] * 2
    for one in tree.sites.values():
        assert one.paid == [1, 2], "an answer from storage is not paid again"
    assert site.resent == 1


@pytest.mark.slow
def test_a_relay_that_doubles_a_site_is_named_and_the_others_round_stands(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {"east": "ab", "west": "cd"}, "e")
    tree.apps["west"] = names_a_site_twice
    with tree.running():
        tree.sites["east:b"].decline = "paused"
        outcome = tree.play(plan_for(2, rounds=1))
        assert outcome.reason == "done", outcome
        (line,) = outcome.history
        assert statuses(line) == {
            "e": "trained",
            "east:a": "trained",
            "east:b": "paused",
            "west": "bad-reply",
        }
