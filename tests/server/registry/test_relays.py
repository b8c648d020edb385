"""Who is a relay is the coordinator's own act; what needs single replies is refused beside one."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.agent.credentials import enroll
from privacy.contract.plan import PlanError
from privacy.contract.plan_file import load_plan
from server.__main__ import app
from server.registry import sites as members
from server.registry.relays import UPWARD, check_composes, needs_single_replies, relays_of
from server.registry.roster import with_roster
from server.registry.sites import Home, MembersError
from server.service.attendance import attendance
from server.service.queue import SiteAnswer
from tests.support.federation import coordinator, now
from tests.support.relays import plan_for, relay_member

TUNED = ["tune.lr_times=[0.5, 1.0]", "tune.rounds=1", "tune.metric=loss", "tune.epsilon=1.0"]
REFUSED = {
    "secure": ('aggregation = "secure"', ["aggregation=secure", "sites=4", "rate=1.0"]),
    "median": ('combine = "median"', ["combine=median"]),
    "trimmed": ('combine = "trimmed-mean"', ["combine=trimmed-mean", "trim=0.2"]),
    "client": ('unit = "client"', ["unit=client", "rate=1.0"]),
    "site": ("[site.a]", ["site.a.rows=200"]),
    "tune": ("[tune]", [*TUNED, "epsilon=3.0", "rounds=4"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_plan_that_needs_single_replies_is_refused_in_one_line_before_anything_is_asked(
    what: str, tmp_path: Path
) -> None:
    text, overrides = REFUSED[what]
    base = ["rate=0.2", "rows=100", "rounds=2", "delta=1e-3"]
    base += [] if what == "tune" else ["sigma=3.0"]
    more = ["weights=rows", "average=false", "secure.dropouts=1", "secure.colluding=1"]
    plan = load_plan("digits", [*base, *overrides, *(more if what == "secure" else [])])
    assert text in str(needs_single_replies(plan))
    check_composes(plan, frozenset())
    home, _ = coordinator(tmp_path)
    relay_member(home, tmp_path / "relay", "east")
    with pytest.raises(PlanError, match="cannot pass the relay east, which sends sums"):
        with_roster(plan, Home(home).members())


def test_a_plan_whose_sum_is_enough_passes(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path)
    relay_member(home, tmp_path / "relay", "east")
    plan = plan_for(2, "cohort=2", "weights=rows")
    assert with_roster(plan, Home(home).members()) == plan


def test_a_site_is_no_relay_unless_the_coordinator_signs_it_as_one(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path, "north")
    relay_member(home, tmp_path / "relay", "east")
    assert relays_of(Home(home).members()) == {"east"}
    north = tmp_path / "north" / "north.csr"
    with pytest.raises(MembersError, match="north is enrolled as a site"):
        members.sign(home, north, now(), relay=True)
    east = tmp_path / "relay" / "coordinator" / UPWARD / "east.csr"
    with pytest.raises(MembersError, match="east is enrolled as a relay"):
        members.sign(home, east, now())
    members.sign(home, east, now(), relay=True)
    members.renew(home, "east", now(), tmp_path)
    assert relays_of(Home(home).members()) == {"east"}, "a renewal changes no role"
    members.revoke(home, "east", now())
    assert relays_of(Home(home).members()) == set()


def test_the_commands_tell_a_relays_folder_from_a_coordinators(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path, "north")
    place = relay_member(home, tmp_path / "relay", "east")
    run = CliRunner().invoke

    def refused(*words: object) -> str:
        result = run(app, [str(word) for word in words])
        assert isinstance(result.exception, ValueError), result.output
        return str(result.exception)

    at = ("--listen", "127.0.0.1:0", "--dir")
    assert "no enrolment with a coordinator here" in refused("relay", *at, home)
    for words in (("serve", *at), ("run", "digits", *at), ("submit", "digits", "--dir")):
        assert "is a relay's folder" in refused(*words, place)
    csr, _ = enroll(tmp_path / "x", "x")
    assert "is a relay's folder" in refused("sign", "--relay", csr, "--dir", place)
    members.sign(place, csr, now(), relay=True)
    assert "a relay's parties must be sites" in refused("relay", *at, place)
    listed = run(app, ["sites", "--dir", str(home)]).output.splitlines()
    assert [line.endswith("  relay") for line in sorted(listed)] == [True, False]


def test_a_relay_that_has_not_joined_does_not_start(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path)
    enroll(home / UPWARD, "east")
    result = CliRunner().invoke(app, ["relay", "--listen", "127.0.0.1:0", "--dir", str(home)])
    assert "not joined yet" in str(result.exception)


def test_sites_behind_a_relay_count_where_both_are_connected() -> None:
    def answer(site: str, reason: str = "") -> SiteAnswer:
        return SiteAnswer(site, "declined" if reason else "approved", reason, 1, 9, 0.0)

    answers = {
        one.site: one
        for one in (
            answer("n"),
            answer("east:a"),
            answer("east:b", "paused"),
            answer("east:c", "plan-denied"),
            answer("gone:x"),
        )
    }
    names, relays = ["n", "east", "west"], {"east", "west"}
    turnout = attendance(names, {"n", "east", "west"}, answers, 1, relays)
    assert turnout.able == {"n", "east:a"}
    assert turnout.waiting == {"east:b": "paused", "west": "not-asked"}
    assert turnout.refused == {"east:c": "plan-denied"}
    assert turnout.reachable(50), "nobody knows how many sites are behind west"
    known = {**answers, "west:y": answer("west:y")}
    turnout = attendance(names, {"n", "west"}, known, 1, relays)
    assert turnout.able == {"n", "west:y"}
    assert turnout.waiting == {"east:a": "away", "east:b": "away"}
    assert turnout.reachable(4) and not turnout.reachable(5)
