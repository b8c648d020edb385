"""A cut cable and a flood: the run goes on by itself. Real hosts' worth of network, so slow."""

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.agent.credentials import enroll, join
from server.registry import sites as members
from tests.support.federation import (
    Events,
    answers,
    ask,
    coordinator,
    linked,
    now,
    running,
    weights_in,
)
from tests.support.patience import patience, wait_for

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
NET, HERE, THERE = "tacit-test", "10.231.7.1", "10.231.7.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def cable() -> Iterator[str]:
    """Another host: a network namespace at the end of a cable; its name."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2, to make a network namespace")
    try:
        ip("netns", "add", NET)
    except subprocess.CalledProcessError:
        pytest.skip("network namespaces are not allowed here")
    try:
        ip("link", "add", "tacit0", "type", "veth", "peer", "name", "tacit1", "netns", NET)
        ip("addr", "add", f"{HERE}/24", "dev", "tacit0")
        ip("link", "set", "tacit0", "up")
        ip("-n", NET, "addr", "add", f"{THERE}/24", "dev", "tacit1")
        ip("-n", NET, "link", "set", "tacit1", "up")
        yield NET
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", "tacit0")
        ip("netns", "del", NET)


def test_a_network_cut_of_a_minute_in_the_middle_of_a_run_heals(cable: str, tmp_path: Path) -> None:
    home, site = tmp_path / "home", tmp_path / "site"
    members.create(home, [HERE], now())
    csr, _ = enroll(site, "far")
    _, bundle = members.sign(home, csr, now())
    join(site, bundle, now())
    with socket.socket() as free:
        free.bind((HERE, 0))
        where = f"{HERE}:{free.getsockname()[1]}"
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    log = (tmp_path / "log").open("ab")
    enter, data = ("ip", "netns", "exec", cable), ("--data", "builtin:0/1")
    run = ["--name", "cut", "--min-sites", "1"]
    run += ["--set", "rounds=60", "--set", "rows=1000", "--set", "sigma=4"]
    client = subprocess.Popen(
        [*enter, BIN / "tacit-client", "run", "--dir", site, "--server", where, *data],
        stdout=log,
        stderr=log,
        env=quiet,
    )
    server = subprocess.Popen(
        [BIN / "tacit-server", "run", "digits", "--dir", home, "--listen", where, *run],
        stdout=log,
        stderr=log,
        env=quiet,
    )
    history = home / "runs" / "cut" / "history.jsonl"

    def rounds() -> int:
        return len(history.read_text().splitlines()) if history.exists() else 0

    try:
        assert wait_for(lambda: rounds() >= 3, 120), (tmp_path / "log").read_text()
        ip("link", "set", "tacit0", "down")
        at_cut = rounds()
        time.sleep(60)
        assert rounds() <= at_cut + 1
        ip("link", "set", "tacit0", "up")
        assert wait_for(lambda: rounds() > at_cut + 2, 60), (tmp_path / "log").read_text()
        assert server.wait(patience(240)) == 0, (tmp_path / "log").read_text()
    finally:
        for process in (client, server):
            process.kill()
            process.wait(patience(20))
        log.close()
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, 61))


def test_ten_thousand_half_open_connections_do_not_stop_a_round(tmp_path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    home, sites = coordinator(tmp_path, "a")
    log = Events()
    over = threading.Event()
    opened = [0]

    def flood(address: tuple[str, int]) -> None:
        held: list[socket.socket] = []
        while not over.is_set() and opened[0] < 10_000:
            with contextlib.suppress(OSError):
                held.append(socket.create_connection(address, 1))
                opened[0] += 1
            if len(held) > most // 4:
                held.pop(0).close()
        over.wait(patience(60))
        for one in held:
            one.close()

    with linked(home, log) as grid, running(sites["a"], grid.address):
        assert wait_for(grid.names)
        thread = threading.Thread(target=flood, args=(grid.address,))
        thread.start()
        try:
            rounds = 0
            while opened[0] < 10_000:
                assert thread.is_alive()
                found = answers(grid, ask(grid, np.zeros(10, np.float32)), 30)
                assert (weights_in(found["a"]) == 1).all()
                rounds += 1
            assert rounds > 0
            with running(sites["a"], grid.address):  # a new connection gets through as well
                assert log.wait("connected", site="a")
                found = answers(grid, ask(grid, np.zeros(10, np.float32)), 30)
                assert (weights_in(found["a"]) == 1).all()
        finally:
            over.set()
            thread.join()
        assert wait_for(lambda: any(line.get("more") for line in log.lines))
        assert len([line for line in log.lines if line["event"] == "connection_refused"]) < 2000
