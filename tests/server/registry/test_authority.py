"""The authority is followed by another while sites are connected, and the old one opens nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from client.agent.credentials import Enrolled, EnrolmentError, enroll, join, take_renewed
from privacy.identity.certificates import Authority, Certificate, issued_by, split
from privacy.identity.keys import new_signing_key
from privacy.identity.rotation import announce
from server.__main__ import app
from server.doctor import examine
from server.registry import authority
from server.registry import sites as members
from server.registry.authority import finish, rotate, rotation
from server.registry.repair import repair
from server.registry.sites import Home, MembersError
from tests.support.federation import Events, answers, ask, coordinator, linked, now, running
from tests.support.patience import wait_for


def trusted(site: Path) -> list[bytes]:
    return split(Enrolled(site).ca.read_bytes())


def taken(home: Path) -> tuple[str, ...]:
    state = rotation(Home(home))
    return () if state is None else state.taken


def rounds(grid: Any, *sites: str) -> None:
    assert wait_for(lambda: sorted(grid.names().values()) == sorted(sites))
    assert set(answers(grid, ask(grid, np.zeros(2, np.float32)))) == set(sites)


def test_sites_take_in_the_next_authority_and_go_on_when_the_old_one_is_dropped(
    tmp_path: Path,
) -> None:
    home, sites = coordinator(tmp_path, "north", "south")
    old = Home(home).ca.read_bytes()
    log = Events()
    with linked(home, log) as grid:
        with running(sites["north"], grid.address):
            rounds(grid, "north")
        new = rotate(home, now()).fingerprint
        with running(sites["north"], grid.address), running(sites["south"], grid.address):
            assert log.wait("authority_taken", site="north")
            assert log.wait("authority_taken", site="south")
            assert trusted(sites["north"]) == [old, Home(home).next_ca.read_bytes()]
            rounds(grid, "north", "south")
            assert finish(home, now()).missing == ()
            rounds(grid, "north", "south")
        with running(sites["north"], grid.address) as events:
            assert events.wait("connected")
            assert wait_for(lambda: len(trusted(sites["north"])) == 1)
            rounds(grid, "north")
    (left,) = trusted(sites["north"])
    assert Certificate.read(left).fingerprint == new != Certificate.read(old).fingerprint
    assert issued_by(Home(home).certificate.read_bytes(), left)
    assert old in (home / authority.RETIRED).read_bytes(), "old reports are checked with it"
    assert not list(home.glob("ca.next.*"))
    assert repair(home, now()) == []


def test_a_site_that_was_away_keeps_the_rotation_open_or_gets_a_bundle_by_hand(
    tmp_path: Path,
) -> None:
    home, sites = coordinator(tmp_path, "north", "away")
    log = Events()
    with linked(home, log) as grid:
        rotate(home, now())
        with running(sites["north"], grid.address):
            assert log.wait("authority_taken", site="north")
            with pytest.raises(MembersError, match="away have not taken in"):
                finish(home, now())
            warned = [one for one in examine(home, "") if one.what == "authority"]
            assert [one.finding for one in warned] == [
                "is being replaced; not yet taken in by away"
            ]
            assert finish(home, now(), without=True).missing == ("away",)
            with running(sites["away"], grid.address) as events:
                assert wait_for(lambda: events.said("disconnected") or events.said("refused"))
                assert wait_for(lambda: list(grid.names().values()) == ["north"])
            bundle = members.renew(home, "away", now(), tmp_path)
            join(sites["away"], bundle, now())
            with running(sites["away"], grid.address):
                rounds(grid, "north", "away")


def test_a_connection_of_the_old_authority_ends_with_it(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "north")
    log = Events()
    with linked(home, log) as grid, running(sites["north"], grid.address):
        rounds(grid, "north")
        rotate(home, now())  # the site asks for its bundle at a new connection or once a day
        finish(home, now(), without=True)
        assert log.wait("connection_refused", why="of a former authority", site="north")
        assert wait_for(lambda: not grid.names())


def test_a_site_enrolled_during_a_rotation_takes_part_in_it(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path)
    rotate(home, now())
    csr, key = enroll(tmp_path / "late", "late")
    join(tmp_path / "late", members.sign(home, csr, now(), expect=key)[1], now())
    assert len(trusted(tmp_path / "late")) == 1
    log = Events()
    with linked(home, log) as grid, running(tmp_path / "late", grid.address):
        assert log.wait("authority_taken", site="late")
        assert finish(home, now()).missing == ()
        rounds(grid, "late")


@pytest.fixture
def announced(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A site's folder, and the bundle that tells it of the next authority."""
    home, sites = coordinator(tmp_path, "north")
    rotate(home, now())
    content, _ = members.bundle_now(home, "north", now())
    return sites["north"], json.loads(content)


def test_only_the_verifying_key_names_the_next_authority(
    announced: tuple[Path, dict[str, Any]],
) -> None:
    site, bundle = announced
    before = {path: path.read_bytes() for path in site.iterdir()}
    own = Authority.create("tacit federation", now())
    forged = announce(new_signing_key(), bundle["ca"].encode(), own.certificate)
    changes: list[dict[str, Any]] = [
        {"ca": own.certificate.decode(), "signature": forged},
        {"ca": own.certificate.decode(), "signature": bundle["next"]["signature"]},
        {"ca": bundle["next"]["ca"] * 2, "signature": bundle["next"]["signature"]},
        {"ca": bundle["next"]["ca"], "signature": "zz"},
        {"ca": bundle["next"]["ca"]},
    ]
    for change in changes:
        with pytest.raises(EnrolmentError):
            take_renewed(site, json.dumps(bundle | {"next": change}).encode(), now())
    with pytest.raises(EnrolmentError, match="another authority"):
        take_renewed(site, json.dumps(bundle | {"ca": bundle["next"]["ca"]}).encode(), now())
    assert {path: path.read_bytes() for path in before} == before
    assert take_renewed(site, json.dumps(bundle).encode(), now())


def test_the_old_authority_alone_cannot_drop_the_next_one(
    announced: tuple[Path, dict[str, Any]],
) -> None:
    site, bundle = announced
    take_renewed(site, json.dumps(bundle).encode(), now())
    by_hand = members.renew(site.parent / "coordinator", "north", now(), site.parent)
    take_renewed(site, by_hand.read_bytes(), now())
    assert len(trusted(site)) == 2


def test_a_bundle_brings_exactly_one_authority_whatever_is_expected(tmp_path: Path) -> None:
    """A second one in the text would be trusted, while only the first is shown and compared."""
    home, _ = coordinator(tmp_path)
    csr, key = enroll(tmp_path / "a", "a")
    _, path = members.sign(home, csr, now(), expect=key)
    shown = Certificate.read(Home(home).ca.read_bytes()).fingerprint
    bundle, other = json.loads(path.read_bytes()), Authority.create("other", now())
    for more in (other.certificate.decode(), bundle["ca"]):
        path.write_text(json.dumps(bundle | {"ca": bundle["ca"] + more}))
        with pytest.raises(EnrolmentError):
            join(tmp_path / "a", path, now(), expect=shown)
    assert not Enrolled(tmp_path / "a").ca.exists()
    path.write_text(json.dumps(bundle))
    join(tmp_path / "a", path, now(), expect=shown)


@pytest.mark.parametrize("writes", range(6))
def test_a_rotation_that_was_killed_anywhere_is_finished_when_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    home, _ = coordinator(tmp_path, "north")
    new, left = rotate(home, now()).fingerprint, [writes]
    members.bundle_now(home, "north", now())
    write, unlink = authority.write_atomic, Path.unlink

    def killed(*words: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    def counted(*words: Any, **options: Any) -> None:
        killed()
        write(*words, **options)

    def counted_unlink(path: Path, **options: Any) -> None:
        killed()
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(authority, "write_atomic", counted)
        patch.setattr(Path, "unlink", counted_unlink)
        with pytest.raises(KeyboardInterrupt):
            finish(home, now(), without=True)
    finish(home, now(), without=True)
    there = Home(home)
    assert Certificate.read(there.ca.read_bytes()).fingerprint == new
    assert members.signing_authority(there).certificate == there.ca.read_bytes()
    assert issued_by(there.certificate.read_bytes(), there.ca.read_bytes())
    assert rotation(there) is None and not list(home.glob("ca.next.*"))
    assert len(split((home / authority.RETIRED).read_bytes())) == 1


def test_the_commands_tell_how_far_it_is_and_leave_a_trail(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path, "north")

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["authority", *words, "--dir", str(home)])
        assert result.exit_code == 0, result.output
        return result.output

    assert "next" not in run("show")
    assert "both are good now" in run("rotate", "--reason", "ca.key was on a lost disk")
    assert "not yet by  north" in run("show")
    state = json.loads(run("show", "--json"))
    assert state["next"]["missing"] == ["north"]
    again = CliRunner().invoke(app, ["authority", "rotate", "--dir", str(home)])
    assert isinstance(again.exception, MembersError) and "under way" in str(again.exception)
    assert "tacit-server renew north" in run("finish", "--without-missing")
    trail = (home / "audit.jsonl").read_text()
    assert "authority rotate" in trail and "lost disk" in trail and "authority finish" in trail
