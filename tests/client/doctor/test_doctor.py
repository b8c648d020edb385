"""The client's doctor: each fault is planted, and its line and its next step are expected."""

import datetime
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from client.__main__ import app as client_app
from client.agent import populations
from client.agent.credentials import Enrolled
from client.agent.process import alone
from client.doctor.doctor import examine
from client.doctor.network_check import clock
from privacy.commands import checks
from privacy.commands.checks import FLOWER, Check
from privacy.contract.policy import builtin_policy
from privacy.identity.certificates import Authority, read_request
from server.registry import sites as members
from tests.support.federation import coordinator, linked, now
from tests.support.patience import patience

Facts = list[Check]


def line(checks: Facts, what: str, state: str | None = None) -> Check:
    """The one check of this name, and state if given."""
    (found,) = [one for one in checks if one.what == what and state in (None, one.state)]
    return found


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An enrolled and joined site, whose coordinator does not run."""
    _, sites = coordinator(tmp_path, "a")
    return sites["a"]


@contextmanager
def plain_server() -> Iterator[str]:
    """Something that answers in plain text, and hangs up."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def answer() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(10)
                    peer.sendall(b"220 smtp.example ready\r\n" * 10)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(patience(10))


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


def reissued(home: Path, site: Path, days: float) -> None:
    """Give the site a certificate that was issued so many days ago."""
    where, own = Enrolled(site), members.Home(home)
    signer = Authority(own.ca.read_bytes(), own.ca_key.read_bytes())
    wish = read_request((site / "a.csr").read_bytes())
    where.certificate.write_bytes(signer.issue(wish, now() - datetime.timedelta(days=days)))


def test_a_healthy_site_has_no_fault(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    (sites["a"] / "policy.toml").write_text(builtin_policy().to_toml())
    (tmp_path / "people.csv").write_text("x\n1\n")
    populations.add(sites["a"], "people", tmp_path / "people.jsonl", tmp_path / "people.csv")
    with linked(home) as grid, alone(sites["a"]):
        checks = examine(
            sites["a"], f"127.0.0.1:{grid.address[1]}", str(tmp_path / "people.csv"), None
        )
    assert {one.state for one in checks} == {"fine"}
    order = ["Flower", "certificate", "name", "TCP", "TLS", "clock", "policy", "data", "ledger"]
    order += ["closed processes", "audit log", "process", "disk"]
    assert [one.what for one in checks] == order


def test_another_version_of_flower(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "version", lambda name: "1.0.0")
    found = line(examine(site, "127.0.0.1:x", "builtin:0/1", None), "Flower")
    assert (found.state, found.next_step) == ("FAULT", "install tacit again")
    assert FLOWER in found.finding and "1.0.0" in found.finding


def test_a_folder_that_never_joined(tmp_path: Path) -> None:
    checks = examine(tmp_path, "127.0.0.1:1", "builtin:0/1", None)
    found = line(checks, "identity")
    assert found.state == "FAULT"
    assert found.next_step.startswith("tacit-client enroll --site NAME --dir")
    assert not [one for one in checks if one.what in ("name", "TCP", "TLS")]


def test_keys_that_others_can_read(site: Path) -> None:
    Enrolled(site).key.chmod(0o644)
    found = line(examine(site, "127.0.0.1:x", "builtin:0/1", None), "keys")
    assert (found.state, found.next_step) == ("FAULT", f"chmod 600 {Enrolled(site).key}")
    assert Enrolled(site).key.name in found.finding


@pytest.mark.parametrize(
    ("days", "state", "word"),
    [(0, "fine", "good"), (500, "FAULT", "expired"), (-30, "FAULT", "early")],
)
def test_the_age_of_the_certificate(tmp_path: Path, days: float, state: str, word: str) -> None:
    home, sites = coordinator(tmp_path, "a")
    reissued(home, sites["a"], days)
    found = line(examine(sites["a"], "127.0.0.1:x", "builtin:0/1", None), "certificate")
    assert found.state == state
    assert f"({word})" in found.finding
    assert ("clock" in found.next_step) is (word == "early")
    assert ("tacit-server renew a" in found.next_step) is (word == "expired")


def test_a_certificate_that_ends_soon_is_a_warning(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    ends = Enrolled(sites["a"]).read_certificate().ends
    reissued(home, sites["a"], (ends - now()).days - 5)
    found = line(examine(sites["a"], "127.0.0.1:x", "builtin:0/1", None), "certificate")
    assert (found.state, "(soon)" in found.finding) == ("warn", True)


@pytest.mark.parametrize("server", ["127.0.0.1:x", "127.0.0.1"])
def test_an_address_that_is_none(site: Path, server: str) -> None:
    found = line(examine(site, server, "builtin:0/1", None), "name")
    assert (found.state, "--server" in found.next_step) == ("FAULT", True)


def test_a_coordinator_that_does_not_run(site: Path) -> None:
    found = line(examine(site, f"127.0.0.1:{free_port()}", "builtin:0/1", None), "TCP")
    assert found.state == "FAULT"
    assert "is the coordinator running?" in found.next_step


def test_something_else_that_answers(site: Path) -> None:
    with plain_server() as server:
        found = line(examine(site, server, "builtin:0/1", None), "TLS")
    assert (found.state, found.finding) == ("FAULT", "what answers there does not speak TLS")
    assert found.next_step == "check the port"


def test_a_coordinator_of_another_authority(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path / "one")
    _, sites = coordinator(tmp_path / "two", "a")
    with linked(home) as grid:
        checks = examine(sites["a"], f"127.0.0.1:{grid.address[1]}", "builtin:0/1", None)
    found = line(checks, "TLS")
    assert "another authority" in found.finding
    assert found.next_step.startswith("something else answers there: stop")
    assert "CN=tacit federation" in found.next_step


def test_a_site_that_was_revoked(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    members.revoke(home, "a", now())
    with linked(home) as grid:
        checks = examine(sites["a"], f"127.0.0.1:{grid.address[1]}", "builtin:0/1", None)
    found = line(checks, "identity")
    assert (found.state, found.finding) == ("FAULT", "revoked")


def test_a_site_that_is_not_on_the_list(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    known = json.loads((home / "sites.json").read_text())
    (home / "sites.json").write_text(json.dumps(known | {"sites": {}}))
    with linked(home) as grid:
        checks = examine(sites["a"], f"127.0.0.1:{grid.address[1]}", "builtin:0/1", None)
    found = line(checks, "identity")
    assert found.finding == "not on its list of sites"
    assert "sign this site's .csr again" in found.next_step


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ({}, "warn"),
        ({"date": "yesterday"}, "warn"),
        ({"date": "Mon, 01 Jan 2024 00:00:00 GMT"}, "FAULT"),
    ],
)
def test_a_clock_that_is_off_or_unknown(headers: dict[str, str], state: str) -> None:
    found = clock(httpx.Response(200, headers=headers))
    assert (found.what, found.state) == ("clock", state)
    assert ("NTP" in found.next_step) is (state == "FAULT")


@pytest.mark.parametrize(
    ("text", "data", "state"),
    [
        (None, "builtin:0/1", "warn"),
        (None, "people.csv", "FAULT"),
        ("epsilon = -1\n", "builtin:0/1", "FAULT"),
        ("not toml", "builtin:0/1", "FAULT"),
        (builtin_policy().to_toml(), "people.csv", "fine"),
    ],
)
def test_the_policy(site: Path, text: str | None, data: str, state: str) -> None:
    if text is not None:
        (site / "policy.toml").write_text(text)
    found = line(examine(site, "127.0.0.1:x", data, None), "policy")
    assert found.state == state
    made = found.next_step == f"tacit-client policy new --dir {site}"
    assert made is (state == "FAULT" and text is None)
    assert found.next_step.startswith(f"edit {site}") is (state == "FAULT" and text is not None)


@pytest.mark.parametrize("data", ["absent.csv", "builtin:3/2", "builtin:x"])
def test_data_that_are_not_there(site: Path, data: str) -> None:
    found = line(examine(site, "127.0.0.1:x", data, None), "data")
    assert (found.state, found.next_step) == ("FAULT", "check --data")


def test_data_that_cannot_be_read(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "people.csv"
    rows.write_text("x\n")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root reads everything
    found = line(examine(site, "127.0.0.1:x", str(rows), None), "data", "FAULT")
    assert "not readable" in found.finding


def test_a_ledger_that_is_gone(site: Path, tmp_path: Path) -> None:
    populations.add(site, "people", tmp_path / "people.jsonl")
    (tmp_path / "people.jsonl").unlink()
    found = line(examine(site, "127.0.0.1:x", "builtin:0/1", None), "ledger")
    assert found.state == "FAULT"
    assert "tacit-client ledger recover" in found.next_step


def test_a_disk_that_is_full(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Any = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = line(examine(site, "127.0.0.1:x", "builtin:0/1", None), "disk")
    assert (found.state, found.finding) == ("FAULT", "1 MiB free")


def test_the_command_prints_faults_with_their_next_steps_and_ends_with_1(tmp_path: Path) -> None:
    words = ["doctor", "--dir", str(tmp_path), "--data", "builtin:0/1"]
    text = CliRunner().invoke(client_app, words)
    assert text.exit_code == 1
    assert "FAULT identity" in text.stdout
    assert "      -> tacit-client enroll --site NAME" in text.stdout
    parsed = json.loads(CliRunner().invoke(client_app, [*words, "--json"]).stdout)
    assert {"what", "state", "finding", "next_step"} == set(parsed["checks"][0])
