"""The coordinator's doctor: each fault is planted, and its line and its next step are expected."""

import datetime
import json
import shutil
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import privacy.commands.checks
from privacy.commands.checks import FLOWER, Check
from privacy.identity.certificates import Authority
from server.__main__ import app as server_app
from server.doctor import examine
from server.registry.sites import Home
from tests.support.federation import coordinator, now


def line(folder: Path, what: str, where: str = "") -> Check:
    """The one check of this name."""
    (found,) = [one for one in examine(folder, where) if one.what == what]
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder, _ = coordinator(tmp_path, "a")
    return folder


def reissued(home: Path, days: float) -> None:
    """Give the coordinator a certificate that was issued so many days ago."""
    own = Home(home)
    signer = Authority(own.ca.read_bytes(), own.ca_key.read_bytes())
    when = now() - datetime.timedelta(days=days)
    own.certificate.write_bytes(signer.issue_server(own.key.read_bytes(), ["127.0.0.1"], when))


def test_a_healthy_coordinator_has_no_fault(home: Path) -> None:
    checks = examine(home, "127.0.0.1:0")
    assert {one.state for one in checks} == {"fine"}
    names = [
        "Flower",
        "keys",
        "ca.pem",
        "server.pem",
        "site a",
        "name",
        "name",
        "audit log",
        "port",
        "disk",
    ]
    assert [one.what for one in checks] == names


def test_another_version_of_flower(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy.commands.checks, "version", lambda name: "1.0.0")
    found = line(home, "Flower")
    assert (found.state, found.next_step) == ("FAULT", "install tacit again")
    assert FLOWER in found.finding


def test_a_folder_without_a_coordinator(tmp_path: Path) -> None:
    found = line(tmp_path, "folder")
    assert (found.state, found.next_step) == ("FAULT", "tacit-server init")


@pytest.mark.parametrize("content", ["{", "{}", '{"sites": 3, "revoked_keys": []}'])
def test_a_list_of_sites_that_cannot_be_read(home: Path, content: str) -> None:
    Home(home).sites.write_text(content)
    assert line(home, "folder").state == "FAULT"


def test_keys_that_others_can_read(home: Path) -> None:
    Home(home).ca_key.chmod(0o640)
    found = line(home, "keys")
    assert (found.state, found.next_step) == ("FAULT", "chmod 600")
    assert "ca.key" in found.finding


def test_a_certificate_of_another_authority(home: Path) -> None:
    other = Authority.create("another", now())
    key = Home(home).key.read_bytes()
    Home(home).certificate.write_bytes(other.issue_server(key, ["127.0.0.1"], now()))
    found = line(home, "certificate")
    assert (found.state, found.next_step) == ("FAULT", "tacit-server renew")


@pytest.mark.parametrize(
    ("days", "state", "word"), [(500, "FAULT", "expired"), (-30, "FAULT", "early")]
)
def test_the_age_of_the_certificate(home: Path, days: float, state: str, word: str) -> None:
    reissued(home, days)
    found = line(home, "server.pem")
    assert (found.state, f"({word})" in found.finding) == (state, True)
    assert ("clock" in found.next_step) is (word == "early")


def test_a_name_that_nobody_knows_is_a_warning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    found = [one for one in examine(home, "") if one.what == "name"]
    assert {one.state for one in found} == {"warn"}
    assert "check DNS" in found[0].next_step


def test_a_port_in_use(home: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        found = line(home, "port", f"127.0.0.1:{taken.getsockname()[1]}")
    assert (found.state, found.next_step) == ("FAULT", "is another coordinator running?")


def test_a_disk_that_is_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage: Any = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert line(home, "disk").state == "FAULT"


def test_the_command_prints_faults_with_their_next_steps_and_ends_with_1(tmp_path: Path) -> None:
    words = ["doctor", "--dir", str(tmp_path)]
    text = CliRunner().invoke(server_app, words)
    assert text.exit_code == 1
    assert "FAULT folder" in text.stdout and "-> tacit-server init" in text.stdout
    parsed = json.loads(CliRunner().invoke(server_app, [*words, "--json"]).stdout)
    assert {"what", "state", "finding", "next_step"} == set(parsed["checks"][0])
