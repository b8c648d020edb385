"""Certificates are made again from their keys, or not at all; the coordinator's renews itself."""

import datetime
from pathlib import Path

import pytest

from privacy.identity.certificates import Certificate
from privacy.identity.keys import new_key
from server.doctor import examine
from server.registry import sites as members
from server.registry.authority import renew_server
from server.registry.repair import repair
from server.registry.sites import Home, MembersError
from server.registry.upkeep import CertificateUpkeep
from tests.support.federation import Events, coordinator, linked, now, running
from tests.support.patience import wait_for

LONG_AGO = datetime.timedelta(days=300)


@pytest.mark.parametrize("lost", [("ca.pem",), ("server.pem",), ("ca.pem", "server.pem")])
def test_missing_certificates_are_made_again_and_sites_need_no_new_bundle(
    tmp_path: Path, lost: tuple[str, ...]
) -> None:
    home, sites = coordinator(tmp_path, "north")
    for name in lost:
        (home / name).unlink()
    faults = [one for one in examine(home, "") if one.state == "FAULT"]
    assert [one.next_step for one in faults] == ["tacit-server repair"]
    kept = {p.name: p.read_bytes() for p in home.iterdir() if p.is_file()}
    assert tuple(repair(home, now())) == lost
    assert {name: (home / name).read_bytes() for name in kept} == kept
    with linked(home) as grid, running(sites["north"], grid.address):
        assert wait_for(lambda: grid.names())
    assert not [one for one in examine(home, "") if one.state == "FAULT"]


def test_where_nothing_is_missing_nothing_changes(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path, "north")
    kept = {p: p.read_bytes() for p in home.iterdir() if p.is_file()}
    assert repair(home, now()) == []
    assert {p: p.read_bytes() for p in kept} == kept


def test_another_authoritys_key_makes_no_certificate(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path, "north")
    (home / "ca.pem").unlink()
    (home / "ca.key").write_bytes(new_key())
    with pytest.raises(MembersError, match="not the key that signed"):
        repair(home, now())
    assert not (home / "ca.pem").exists()


@pytest.mark.parametrize("name", ["ca.key", "server.key", "signing.key", "sites.json"])
def test_what_follows_from_nothing_is_not_made(tmp_path: Path, name: str) -> None:
    home, _ = coordinator(tmp_path, "north")
    for lost in (name, "ca.pem"):
        (home / lost).unlink()
    with pytest.raises(MembersError, match=f"{name} cannot be made again"):
        repair(home, now())
    assert not (home / "ca.pem").exists()


def test_the_coordinators_certificate_is_renewed_while_it_runs(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "north")
    before = renew_server(home, [], now() - LONG_AGO)
    events = Events()
    with linked(home, events) as grid:
        assert events.wait("certificate_renewed", whose="coordinator")
        with running(sites["north"], grid.address):
            assert wait_for(lambda: grid.names())
    after = Certificate.read(Home(home).certificate.read_bytes())
    assert after.ends > before.ends + datetime.timedelta(days=200)
    assert after.hosts == before.hosts


def test_what_ends_soon_is_told_once_a_day_and_a_lost_authority_key_too(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path, "north")
    members.renew(home, "north", now() - LONG_AGO, tmp_path, days=310)
    renew_server(home, [], now() - LONG_AGO, days=310)
    Home(home).ca_key.unlink()
    events = Events()
    upkeep = CertificateUpkeep(Home(home), events)
    for _ in range(3):
        upkeep._next = 0.0
        upkeep()
    told = [(line["event"], line["whose"]) for line in events.lines]
    assert told == [
        ("certificate_not_renewed", "coordinator"),
        ("certificate_expires_soon", "coordinator"),
        ("certificate_expires_soon", "site north"),
    ]
