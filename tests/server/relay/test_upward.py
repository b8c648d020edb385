"""A relay's connection to its coordinator is that of a site: it answers, and ends where refused."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.agent.credentials import EnrolmentError, enroll
from privacy.audit_trail import read
from server.__main__ import app as server_app
from server.registry import sites as members
from server.relay.upward import Enrolment, connected
from tests.support.federation import Events, answers, app, ask, coordinator, linked, now, weights_in
from tests.support.patience import patience, wait_for
from tests.support.relays import relay_member


def test_a_relay_answers_its_coordinator_and_says_why_it_is_refused(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "region")
    events = Events()
    with linked(home) as grid:
        server = f"127.0.0.1:{grid.address[1]}"
        with connected(sites["region"], app(), log=events, server=server, proxy="none") as agent:
            assert wait_for(lambda: list(grid.names().values()) == ["region"])
            found = answers(grid, ask(grid, np.zeros(10, np.float32)))
            assert (weights_in(found["region"]) == 1).all()
            members.revoke(home, "region", now())
            assert agent.stop.wait(patience(10))
        assert agent.refused == "revoked"
        assert not grid.names()


def test_a_relay_that_is_stopped_takes_its_leave(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "region")
    with linked(home) as grid:
        server = f"127.0.0.1:{grid.address[1]}"
        with connected(sites["region"], app(), log=Events(), server=server) as agent:
            assert wait_for(grid.names)
        assert not grid.names()
        assert agent.refused == ""


def test_a_relay_has_its_name_once_it_has_joined(tmp_path: Path) -> None:
    _, sites = coordinator(tmp_path, "region")
    assert Enrolment(sites["region"]).name == "region"
    enroll(tmp_path / "new", "other")
    with pytest.raises(EnrolmentError):
        _ = Enrolment(tmp_path / "new").name


def test_the_command_ends_with_1_and_says_why_where_its_coordinator_refuses_it(
    tmp_path: Path,
) -> None:
    home, _ = coordinator(tmp_path)
    place = relay_member(home, tmp_path / "relay", "east")
    members.revoke(home, "east", now())
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with linked(home) as grid:
            words = ["relay", "--listen", "127.0.0.1:0", "--dir", str(place), "--json"]
            words += ["--server", f"127.0.0.1:{grid.address[1]}", "--proxy", "none"]
            told = CliRunner().invoke(server_app, words)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert told.exit_code == 1, (told.output, told.exception)
    assert [one.command for one in read(place)][-1] == "relay"
    lines = [json.loads(line) for line in told.output.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines if line["event"] in ("listening", "refused")] == [
        "listening",
        "refused",
    ]
    assert lines[-1]["why"] == "revoked"
