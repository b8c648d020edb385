"""A site's certificate is renewed over the connection; its keys can be replaced in its folder."""

import datetime
import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from client.agent.credentials import Enrolled, EnrolmentError, enroll, join, take_renewed
from client.agent.renewal import Renewal
from privacy.identity.keys import fingerprint, public_of
from server.registry import sites as members
from server.registry.authority import renew_server
from tests.support.federation import (
    Events,
    answers,
    ask,
    coordinator,
    linked,
    member,
    now,
    running,
)
from tests.support.patience import wait_for

LONG_AGO = datetime.timedelta(days=300)


def aged(folder: Path, days: float = 397) -> tuple[Path, Path]:
    """A federation whose one site's certificate is due."""
    home, _ = coordinator(folder)
    csr, key = enroll(folder / "a", "a")
    _, bundle = members.sign(home, csr, now() - LONG_AGO, expect=key, days=days)
    join(folder / "a", bundle, now())
    return home, folder / "a"


def ends(site: Path) -> datetime.datetime:
    return Enrolled(site).read_certificate().ends


def test_a_certificate_that_is_due_is_renewed_over_the_connection_and_used_at_once(
    tmp_path: Path,
) -> None:
    home, site = aged(tmp_path)
    before, key = ends(site), Enrolled(site).key.read_bytes()
    server = Events()
    with linked(home, server) as grid, running(site, grid.address) as events:
        assert events.wait("certificate_renewed")
        assert ends(site) > before + LONG_AGO - datetime.timedelta(days=1)
        assert wait_for(lambda: [line["event"] for line in events.lines].count("connected") == 2)
        assert set(answers(grid, ask(grid, np.zeros(2, np.float32)))) == {"a"}
    assert server.said("certificate_renewed", whose="site a")
    assert Enrolled(site).key.read_bytes() == key
    assert members.Home(home).members().sites["a"].certificate.ends == ends(site)


def test_a_certificate_that_is_not_due_stays_and_the_authority_signs_nothing(
    tmp_path: Path,
) -> None:
    home, sites = coordinator(tmp_path, "a")
    listed = (home / "sites.json").read_bytes()
    content, renewed = members.bundle_now(home, "a", now())
    assert not renewed
    assert not take_renewed(sites["a"], content, now())
    assert (home / "sites.json").read_bytes() == listed


def test_a_renewed_certificate_holds_as_long_as_the_one_before(tmp_path: Path) -> None:
    home, _ = aged(tmp_path, days=350)
    members.bundle_now(home, "a", now())
    assert members.Home(home).members().sites["a"].certificate.days == pytest.approx(350, abs=0.01)


def test_new_addresses_of_the_coordinator_arrive_over_the_connection(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    renew_server(home, ["127.0.0.1", "coordinator.example:443"], now())
    with linked(home) as grid, running(sites["a"], grid.address):
        assert wait_for(lambda: "coordinator.example:443" in Enrolled(sites["a"]).hosts)
    assert Enrolled(sites["a"]).hosts == ["127.0.0.1:8443", "coordinator.example:443"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda b, other: b"{", "bundle of tacit-server sign"),
        (lambda b, other: other, "another"),
        (lambda b, other: json.dumps(json.loads(b) | {"verify": "0" * 64}).encode(), "verifying"),
        (lambda b, other: json.dumps(json.loads(b) | {"hosts": []}).encode(), "addresses"),
        (lambda b, other: json.dumps(json.loads(b) | {"hosts": ["x"]}).encode(), "HOST:PORT"),
        (
            lambda b, other: json.dumps(json.loads(b) | {"ca": json.loads(other)["ca"]}).encode(),
            "authority",
        ),
    ],
)
def test_what_comes_over_the_connection_is_checked_before_anything_is_written(
    tmp_path: Path, change: object, why: str
) -> None:
    home, site = aged(tmp_path / "one")
    other, _ = coordinator(tmp_path / "two", "a")
    content, _ = members.bundle_now(home, "a", now())
    foreign, _ = members.bundle_now(other, "a", now())
    before = {path: path.read_bytes() for path in site.iterdir()}
    with pytest.raises(ValueError, match=why):
        take_renewed(site, change(content, foreign), now())  # type: ignore[operator]
    assert {path: path.read_bytes() for path in site.iterdir()} == before


def test_a_renewal_that_fails_is_told_once_a_day_and_tried_again(tmp_path: Path) -> None:
    _, site = aged(tmp_path, days=310)
    events = Events()
    renewal = Renewal(Enrolled(site), events)
    for _ in range(3):
        assert not renewal.ask(lambda: httpx.Response(503))
    assert [line["event"] for line in events.lines] == [
        "certificate_not_renewed",
        "certificate_expires_soon",
    ]
    assert "503" in events.lines[0]["why"]
    assert not renewal.is_due()


def test_new_keys_serve_from_join_on_and_nothing_else_of_the_folder_changes(
    tmp_path: Path,
) -> None:
    home, sites = coordinator(tmp_path, "a")
    site = sites["a"]
    (site / "policy.toml").write_text("epsilon = 1.0\ndelta = 1e-5\n")
    (site / "people.jsonl").write_text("")
    old = Enrolled(site).key.read_bytes()
    csr, key = enroll(site, "a", new_keys=True)
    assert Enrolled(site).key.read_bytes() == old, "the old keys serve on until join"
    with pytest.raises(members.MembersError, match="--replace"):
        members.sign(home, csr, now(), expect=key)
    _, bundle = members.sign(home, csr, now(), expect=key, replace_key=True)
    join(site, bundle, now())
    assert fingerprint(public_of(Enrolled(site).key.read_bytes())) == key
    assert not list(site.glob("*.next"))
    assert (site / "policy.toml").read_text() == "epsilon = 1.0\ndelta = 1e-5\n"
    assert (site / "people.jsonl").read_text() == ""
    with linked(home) as grid, running(site, grid.address):
        assert wait_for(lambda: grid.names())


def test_a_kill_in_the_middle_of_join_is_completed_by_join_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, sites = coordinator(tmp_path, "a")
    csr, key = enroll(sites["a"], "a", new_keys=True)
    _, bundle = members.sign(home, csr, now(), expect=key, replace_key=True)
    real, moved = Path.replace, list[Path]()

    def killed(source: Path, target: Path) -> Path:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        return real(source, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        join(sites["a"], bundle, now())
    monkeypatch.undo()
    join(sites["a"], bundle, now())
    site = Enrolled(sites["a"])
    assert fingerprint(public_of(site.key.read_bytes())) == key
    assert site.read_certificate().key == public_of(site.key.read_bytes())


def test_a_client_whose_key_was_replaced_is_told_so_and_stops(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path)
    old = member(tmp_path, home, "a")
    csr, key = enroll(tmp_path / "again", "a")
    members.sign(home, csr, now(), expect=key, replace_key=True)
    with linked(home) as grid, running(old, grid.address) as events:
        assert events.wait("refused", why="revoked")


def test_new_keys_of_a_folder_without_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="no keys yet"):
        enroll(tmp_path / "a", "a", new_keys=True)
