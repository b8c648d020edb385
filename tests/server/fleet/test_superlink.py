"""The link between coordinator and sites: real TLS, and Flower's fleet protocol over it."""

import datetime
import gc
import threading
import time
import weakref
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.agent.connection import Agent
from client.agent.credentials import Enrolled
from client.agent.route import Route
from privacy.identity.certificates import Authority, read_request
from server.fleet import tls_server
from server.fleet.grid import serve
from server.registry import sites as members
from tests.support.federation import (
    Events,
    answers,
    app,
    ask,
    content,
    coordinator,
    linked,
    member,
    now,
    running,
    weights_in,
)
from tests.support.patience import patience, wait_for

ZERO = np.zeros(1000, np.float32)


def test_a_round_goes_around_and_each_site_is_known_by_its_certificate(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a", "b")
    with linked(home) as grid, running(sites["a"], grid.address), running(sites["b"], grid.address):
        assert wait_for(lambda: sorted(grid.names().values()) == ["a", "b"])
        found = answers(grid, ask(grid, ZERO))
        assert sorted(found) == ["a", "b"]
        assert all((weights_in(m) == 1).all() for m in found.values())


def test_a_site_that_was_signed_while_the_coordinator_runs_may_join(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path)
    with linked(home) as grid:
        late = member(tmp_path, home, "late")
        with running(late, grid.address):
            assert wait_for(lambda: list(grid.names().values()) == ["late"])


def test_a_stopped_client_is_no_longer_there(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    with linked(home) as grid:
        with running(sites["a"], grid.address):
            assert wait_for(grid.names)
        assert not grid.names()


def test_a_client_that_lost_its_request_is_given_it_again(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    with linked(home) as grid:
        with _taken_and_lost(sites["a"], grid.address) as taken:
            assert wait_for(grid.names)
            asked = ask(grid, ZERO)
            assert taken.wait(patience(10))
        began = time.monotonic()
        with running(sites["a"], grid.address):
            found = answers(grid, asked)
        assert (weights_in(found["a"]) == 1).all()
        assert time.monotonic() - began < patience(10)


def _taken_and_lost(folder: Path, address: tuple[str, int]):  # type: ignore[no-untyped-def]
    """A client that takes a request and dies of it, as by kill -9: without a word."""
    from contextlib import contextmanager

    @contextmanager
    def dying():  # type: ignore[no-untyped-def]
        taken, site = threading.Event(), Enrolled(folder)
        agent = Agent(
            app(),
            site,
            Route([f"127.0.0.1:{address[1]}"], "none"),
            log=Events(),
            stop=threading.Event(),
        )
        stay = agent._connected()
        link = stay.__enter__()

        def take() -> None:
            while link.pull() is None:
                continue
            taken.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield taken
        stay.__exit__(None, None, None)
        thread.join(patience(5))

    return dying()


def test_a_late_answer_is_not_counted_and_said_so(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    log, go = Events(), threading.Event()

    def slow(weights: np.ndarray) -> np.ndarray:
        go.wait(patience(60))
        return weights + 1

    with linked(home, log) as grid, running(sites["a"], grid.address, app(slow)):
        assert wait_for(grid.names)
        first = ask(grid, ZERO)
        assert not answers(grid, first, 0.3)
        second = ask(grid, ZERO + 5)
        assert log.wait("reply_missing", site="a")
        go.set()
        assert (weights_in(answers(grid, second)["a"]) == 6).all()
        assert log.said("reply_late", site="a")
        assert not answers(grid, first, 0.1)


def test_a_message_whose_time_is_over_ends_as_an_error(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    go = threading.Event()

    def never(weights: np.ndarray) -> np.ndarray:
        go.wait(patience(60))
        return weights

    with linked(home) as grid, running(sites["a"], grid.address, app(never)):
        assert wait_for(grid.names)
        found = answers(grid, ask(grid, ZERO, ttl=0.5))
        assert found["a"].has_error()
        assert found["a"].error.reason == "too late"
        go.set()


def test_an_oversized_reply_is_refused_and_the_others_stand(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "big", "good")
    log = Events()
    big = app(lambda w: np.zeros(5_000_000, np.float32))
    with (
        linked(home, log) as grid,
        running(sites["big"], grid.address, big) as said,
        running(sites["good"], grid.address),
    ):
        grid.reply_limit = 1_000_000
        assert wait_for(lambda: len(grid.names()) == 2)
        found = answers(grid, ask(grid, ZERO))
        assert found["big"].error.reason == "oversized"
        assert (weights_in(found["good"]) == 1).all()
        assert said.wait("disconnected")
        assert wait_for(lambda: len(grid.names()) == 2)


def test_an_app_that_fails_says_so_and_nothing_else(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")

    def fails(weights: np.ndarray) -> np.ndarray:
        raise ValueError("patient 17")

    with linked(home) as grid, running(sites["a"], grid.address, app(fails)):
        assert wait_for(grid.names)
        found = answers(grid, ask(grid, ZERO))
        assert "17" not in str(found["a"].error.reason)


def test_sites_that_answer_the_same_bytes_do_not_disturb_one_another(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, *"abcd")
    from contextlib import ExitStack

    with linked(home) as grid, ExitStack() as stack:
        for folder in sites.values():
            stack.enter_context(running(folder, grid.address, app(lambda w: ZERO)))
        assert wait_for(lambda: len(grid.names()) == 4)
        for _ in range(5):
            found = answers(grid, ask(grid, ZERO))
            assert len(found) == 4
            assert not any(message.has_error() for message in found.values())


def test_the_state_is_empty_after_a_round(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a", "b")
    with linked(home) as grid, running(sites["a"], grid.address), running(sites["b"], grid.address):
        assert wait_for(lambda: len(grid.names()) == 2)
        answers(grid, ask(grid, ZERO))
        assert len(grid._fleet.state.object_store) == 0
        assert not grid._fleet.pending
        assert not grid._fleet._sessions


def test_weights_for_many_sites_are_in_memory_once(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, *"abcd")
    go = threading.Event()

    def waits(weights: np.ndarray) -> np.ndarray:
        go.wait(patience(60))
        return weights[:1]

    weights = np.arange(1_000_000, dtype=np.float32)
    with linked(home) as grid, ExitStack() as stack:
        for folder in sites.values():
            stack.enter_context(running(folder, grid.address, app(waits)))
        assert wait_for(lambda: len(grid.names()) == 4)
        asked = ask(grid, weights)
        store = grid._fleet.state.object_store.store
        held = sum(len(entry.content) for entry in list(store.values()))
        go.set()
        assert len(answers(grid, asked)) == 4
    assert weights.nbytes < held < 1.01 * weights.nbytes


def test_a_reply_is_out_of_memory_with_its_last_reference(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    with linked(home) as grid, running(sites["a"], grid.address):
        assert wait_for(grid.names)
        gc.disable()  # no collector comes to the rescue
        try:
            found = answers(grid, ask(grid, ZERO))
            kept = weakref.ref(found["a"].content["arrays"]["w"])
            assert kept() is not None
            found.clear()
            assert kept() is None
        finally:
            gc.enable()


def test_clients_come_back_by_themselves_when_the_coordinator_does(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a")
    with linked(home) as grid:
        address = grid.address
        client = running(sites["a"], address)
        events = client.__enter__()
        assert wait_for(grid.names)
    try:
        assert events.wait("disconnected")
        with serve(home, address, log=Events()) as again:
            assert wait_for(again.names, 15)
            assert (weights_in(answers(again, ask(again, ZERO))["a"]) == 1).all()
            client.__exit__(None, None, None)
    finally:
        events("end")


def test_a_reply_in_hand_when_the_coordinator_dies_does_not_keep_its_site_away(
    tmp_path: Path,
) -> None:
    """Node ids end with a coordinator's process, and so does what was answered under them."""
    home, sites = coordinator(tmp_path, "a")
    begun, release = threading.Event(), threading.Event()
    slow = ClientApp()

    @slow.train()
    def train(message: Message, context: Context) -> Message:
        weights = message.content.array_records["arrays"]["w"].numpy()
        reply = Message(content(weights + 1), reply_to=message)
        begun.set()
        assert release.wait(patience(60))
        return reply

    with ExitStack() as stack:
        with linked(home) as grid:
            address = grid.address
            events = stack.enter_context(running(sites["a"], address, slow))
            assert wait_for(grid.names)
            ask(grid, ZERO)
            assert begun.wait(patience(20))
        with serve(home, address, log=Events()) as again:
            release.set()
            assert events.wait("reply_dropped", reason="coordinator_restarted")
            assert wait_for(again.names, 15)
            assert (weights_in(answers(again, ask(again, ZERO))["a"]) == 1).all()
        assert sum(line["event"] == "disconnected" for line in events.lines) < 10


def test_a_stopped_client_finishes_its_work_and_sends_it_even_without_its_certificate(
    tmp_path: Path,
) -> None:
    """As after `leave`: what it holds open is enough to answer and to say goodbye."""
    home, sites = coordinator(tmp_path, "a")
    begun, release, stop, log = threading.Event(), threading.Event(), threading.Event(), Events()

    def slow(weights: np.ndarray) -> np.ndarray:
        begun.set()
        release.wait(patience(60))
        return weights + 1

    with linked(home, log) as grid:
        site, where = Enrolled(sites["a"]).joined(), f"127.0.0.1:{grid.address[1]}"
        agent = Agent(app(slow), site, Route([where], "none"), log=Events(), stop=stop)
        thread = threading.Thread(target=agent.run, daemon=True)
        thread.start()
        assert wait_for(grid.names)
        asked = ask(grid, ZERO)
        assert begun.wait(patience(20))
        site.certificate.unlink()
        stop.set()
        agent.close()
        release.set()
        assert (weights_in(answers(grid, asked)["a"]) == 1).all()
        thread.join(patience(10))
        assert log.wait("disconnected", site="a")
        assert not grid.names()


def test_a_revoked_client_is_told_and_its_round_goes_on_without_it(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "a", "b")
    with (
        linked(home) as grid,
        running(sites["a"], grid.address) as said,
        running(sites["b"], grid.address),
    ):
        assert wait_for(lambda: len(grid.names()) == 2)
        began = time.monotonic()
        members.revoke(home, "a", now())
        assert said.wait("refused", 5, why="revoked")
        assert time.monotonic() - began < patience(2)
        assert list(grid.names().values()) == ["b"]
        assert (weights_in(answers(grid, ask(grid, ZERO))["b"]) == 1).all()


@pytest.mark.parametrize("size", [0, 1, 4_000_000])
def test_weights_of_any_size_arrive_as_they_left(tmp_path: Path, size: int) -> None:
    home, sites = coordinator(tmp_path, "a")
    weights = np.arange(size, dtype=np.float32)
    with linked(home) as grid, running(sites["a"], grid.address):
        assert wait_for(grid.names)
        found = answers(grid, ask(grid, weights))
        assert np.array_equal(weights_in(found["a"]), weights + 1)


def test_messages_hold_no_more_than_was_put_in() -> None:
    assert list(content(ZERO)) == ["arrays"]


@pytest.mark.parametrize(
    ("authority", "age", "why"),
    [("own", 500, "expired"), ("other", 0, "not of the coordinator's authority")],
)
def test_a_client_whose_certificate_is_no_good_says_so_and_stops(
    tmp_path: Path, authority: str, age: int, why: str
) -> None:
    home, sites = coordinator(tmp_path, "a")
    here, own = Enrolled(sites["a"]), members.Home(home)
    wish = read_request((sites["a"] / "a.csr").read_bytes())
    signer = Authority(own.ca.read_bytes(), own.ca_key.read_bytes())
    if authority == "other":
        signer = Authority.create("another", now())
    here.certificate.write_bytes(signer.issue(wish, now() - datetime.timedelta(days=age)))
    with linked(home) as grid, running(sites["a"], grid.address) as said:
        assert said.wait("refused", 10, why=why)


def test_a_coordinator_of_another_authority_is_not_spoken_to(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path / "one")
    _, sites = coordinator(tmp_path / "two", "a")
    log = Events()
    with linked(home, log) as grid, running(sites["a"], grid.address) as said:
        reason = "the coordinator's certificate is of another authority"
        assert said.wait("disconnected", 10, why=reason)
        assert not log.said("connected")


def test_sites_are_told_over_how_long_to_spread_out_coming_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_server, "_HANDSHAKE_SECONDS", 7.0)
    home, sites = coordinator(tmp_path, "a")
    agent = Agent(
        app(),
        Enrolled(sites["a"]),
        Route(["127.0.0.1:1"], "none"),
        log=Events(),
        stop=threading.Event(),
    )
    assert agent._pauses.after(3) <= 2.4
    with linked(home) as grid, running(sites["a"], grid.address):
        assert wait_for(grid.names)
        agent._route = Route([f"127.0.0.1:{grid.address[1]}"], "none")
        with agent._connected():
            pauses = [agent._pauses.after(3) for _ in range(200)]
    assert 1.6 <= min(pauses) < 4 and 7 < max(pauses) <= 9.4
    assert agent._pauses.after(0) < 0.3  # the first time at once: the door keeps the order
    for said in ("many", "-1", "1e9", "\uff19"):
        agent._pauses.told(httpx.Response(200, headers={"retry-after": said.encode()}))
        assert agent._pauses._spread == 7
    agent._pauses.told(httpx.Response(200, headers={"retry-after": "99999"}))
    assert agent._pauses._spread == 120
    agent._pauses.told(httpx.Response(200))
    assert agent._pauses._spread == 0
