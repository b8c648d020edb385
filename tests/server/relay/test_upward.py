"""A relay's connection to its coordinator is that of a site: it answers, and ends where refused."""

from pathlib import Path

import numpy as np
import pytest

from client.agent.credentials import EnrolmentError, enroll
from server.registry import sites as members
from server.relay.upward import Enrolment, connected
from tests.support.federation import Events, answers, app, ask, coordinator, linked, now, weights_in
from tests.support.patience import patience, wait_for


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
