"""Which sites count as connected, over real TLS."""

import threading
from pathlib import Path
from typing import Any

import pytest

from client.agent import connection
from server.fleet.liveness import Liveness
from server.fleet.tls_server import TlsServer
from tests.support.federation import coordinator, linked, running
from tests.support.patience import patience, wait_for


def test_a_client_that_was_killed_in_its_poll_is_gone_with_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poll that outlives its connection is no sign of life: else it were here for 45 s."""
    heard, answer, polled = list[str](), TlsServer._answer, threading.Event()

    async def answering(server: TlsServer, *words: Any) -> Any:
        found = await answer(server, *words)
        if words[1]["path"].endswith("pull-messages"):
            polled.set()
        return found

    for name in ("seen", "closed"):
        real = getattr(Liveness, name)

        def noted(liveness: Liveness, site: str, name: str = name, real: Any = real) -> None:
            heard.append(name)
            real(liveness, site)

        monkeypatch.setattr(Liveness, name, noted)
    monkeypatch.setattr(TlsServer, "_answer", answering)
    monkeypatch.setattr(connection._Link, "take_leave", lambda link: None)
    pull, links = connection._Link.pull, list[Any]()

    def pulling(link: Any) -> Any:
        links.append(link)
        return pull(link)

    monkeypatch.setattr(connection._Link, "pull", pulling)
    monkeypatch.setattr(connection.Agent, "close", lambda agent: links[-1].client.close())
    home, sites = coordinator(tmp_path, "a")
    with linked(home) as grid:
        with running(sites["a"], grid.address):
            assert wait_for(lambda: links)
        assert polled.wait(patience(10))
        assert wait_for(lambda: heard[-1] == "closed")
