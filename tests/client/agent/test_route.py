"""The way to the coordinator: addresses in turn, and real HTTP proxies."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from client.agent.route import Proxy, Route, RouteError, proxy_for, route, split_address
from client.doctor.doctor import examine
from privacy.commands.checks import Check
from tests.support.federation import Events, answers, app, ask, coordinator, linked, run_agent
from tests.support.patience import patience, wait_for

SERVER = "coord.example:8443"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("server", "found"),
    [("a.b:1", ("a.b", 1)), ("[::1]:8443", ("::1", 8443)), ("10.0.0.1:99", ("10.0.0.1", 99))],
)
def test_an_address_is_split(server: str, found: tuple[str, int]) -> None:
    assert split_address(server) == found


@pytest.mark.parametrize("server", ["", "a", "a:", "a:0", "a:70000", ":1", "a:x"])
def test_anything_else_is_refused(server: str) -> None:
    with pytest.raises(RouteError, match="must be HOST:PORT"):
        route([], server, "none")


@pytest.mark.parametrize(
    ("setting", "environment", "proxy"),
    [
        ("env", {}, None),
        ("env", {"HTTPS_PROXY": "http://p:3128"}, "p:3128"),
        ("env", {"https_proxy": "p:3128"}, "p:3128"),
        ("env", {"HTTP_PROXY": "http://p:3128"}, None),
        ("env", {"ALL_PROXY": "http://q:1"}, "q:1"),
        ("env", {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "coord.example"}, None),
        ("env", {"HTTPS_PROXY": "http://p:3128", "no_proxy": ".example"}, None),
        ("env", {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "*"}, None),
        ("env", {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "other.example"}, "p:3128"),
        ("none", {"HTTPS_PROXY": "http://p:3128"}, None),
        ("http://own:8080", {"HTTPS_PROXY": "http://p:3128"}, "own:8080"),
        ("https://own", {}, "own:443"),
    ],
)
def test_the_proxy_is_the_one_of_the_option_or_of_the_environment(
    setting: str, environment: dict[str, str], proxy: str | None
) -> None:
    found = proxy_for(SERVER, setting, environment)
    assert (None if found is None else str(found)) == proxy


@pytest.mark.parametrize("setting", ["socks5://p:1", "http://", "http://p:1/path", "http://p:x"])
def test_a_proxy_that_cannot_be_is_refused_before_any_work(setting: str) -> None:
    with pytest.raises(RouteError, match="must be http://"):
        route([SERVER], None, setting)


def test_a_login_is_never_shown() -> None:
    proxy = proxy_for(SERVER, "http://user:secret@p:3128")
    assert isinstance(proxy, Proxy)
    assert "secret" not in f"{proxy} {proxy!r} {Route([SERVER], 'http://user:secret@p:1').via()}"


@contextmanager
def tinyproxy(folder: Path, *lines: str) -> Iterator[int]:
    """A real proxy on 127.0.0.1; its port."""
    if shutil.which("tinyproxy") is None:
        pytest.skip("needs tinyproxy")
    port = free_port()
    config = folder / "tinyproxy.conf"
    basic = [f"Port {port}", "Listen 127.0.0.1", "Timeout 600", "Allow 127.0.0.1"]
    config.write_text("\n".join([*basic, *lines]) + "\n")
    with (folder / "tinyproxy.log").open("wb") as log:
        process = subprocess.Popen(["tinyproxy", "-d", "-c", config], stdout=log, stderr=log)
    try:
        assert wait_for(lambda: _open(port))
        yield port
    finally:
        process.kill()
        process.wait(20)


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_round_goes_through_a_proxy_with_a_login_and_the_doctor_takes_the_same_way(
    tmp_path: Path,
) -> None:
    home, sites = coordinator(tmp_path, "north")
    log = Events()
    with linked(home) as grid, tinyproxy(tmp_path, "BasicAuth user secret") as port:
        server, way = f"127.0.0.1:{grid.address[1]}", f"http://user:secret@127.0.0.1:{port}"
        with run_agent(sites["north"], Route([server], way), app(), log):
            assert log.wait("connected", server=server, proxy=f"127.0.0.1:{port}")
            asked = ask(grid, np.zeros(3, np.float32))
            assert set(answers(grid, asked, patience(20))) == {"north"}
        found = {c.what: c for c in examine(sites["north"], server, "builtin:0/3", None, way)}
        assert found["proxy"].state == "fine"
        assert found["TLS"].state == "fine"
        denied = examine(sites["north"], server, "builtin:0/3", None, f"http://127.0.0.1:{port}")
        (fault,) = [check for check in denied if check.state == "FAULT"]
        assert fault.what == "proxy"
        assert "wants a login" in fault.next_step
    assert "secret" not in str(log.lines)


def only_fault(site: Path, server: str, way: str) -> Check:
    checks = examine(site, server, "builtin:0/3", None, way)
    (fault,) = [check for check in checks if check.state == "FAULT"]
    return fault


def test_the_doctor_tells_a_proxy_that_forbids_from_one_that_is_down(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "north")
    with linked(home) as grid, tinyproxy(tmp_path, "ConnectPort 443") as port:
        server = f"127.0.0.1:{grid.address[1]}"
        way = f"http://127.0.0.1:{port}"
        (fault,) = [
            c
            for c in examine(sites["north"], server, "builtin:0/3", None, way)
            if c.state == "FAULT"
        ]
        assert fault.what == "proxy"
        assert "CONNECT" in fault.next_step
        down = f"http://127.0.0.1:{free_port()}"
        (fault,) = [
            c
            for c in examine(sites["north"], server, "builtin:0/3", None, down)
            if c.state == "FAULT"
        ]
        assert fault.what == "proxy"
        assert "--proxy none" in fault.next_step


def test_every_address_of_the_bundle_is_tried_and_the_second_one_serves(tmp_path: Path) -> None:
    home, sites = coordinator(tmp_path, "north")
    log = Events()
    with linked(home) as grid:
        dead, alive = f"127.0.0.1:{free_port()}", f"127.0.0.1:{grid.address[1]}"
        began = time.monotonic()
        with run_agent(sites["north"], Route([dead, alive], "none"), app(), log):
            assert log.wait("connected", server=alive)
            assert time.monotonic() - began < patience(10)
        checks = examine(sites["north"], None, "builtin:0/3", None, "none")
        assert any(check.what == "TCP" for check in checks)


def test_an_environment_variable_that_names_no_proxy_of_ours_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, sites = coordinator(tmp_path, "north")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    log = Events()
    with linked(home) as grid:
        server = f"127.0.0.1:{grid.address[1]}"
        with run_agent(sites["north"], Route([server]), app(), log):
            assert log.wait("connected", server=server)
    assert not any("proxy" in line for line in log.lines)
