"""Names: hosts that sites can dial, and sites that nobody takes for each other."""

from pathlib import Path

import pytest

from client.agent.credentials import enroll
from server.registry.hosts import HostError, split_dialled, split_host
from server.registry.sites import MembersError, create, sign
from tests.support.federation import now


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0:8443", "[::]:8443", "::", "224.0.0.1", "*.x.example:8443", f"{'a' * 64}.org", "a..b",
     "-a.example", "a b", "1.2.3", "1.2.3.4.5", "a\nb", ".", f"{'a.' * 127}org", "exämple"],
)  # fmt: skip
def test_a_host_that_nobody_can_dial_is_refused(host: str) -> None:
    with pytest.raises(HostError, match="must be"):
        split_dialled(host)


@pytest.mark.parametrize(
    ("host", "pair"),
    [
        ("coordinator.example:9000", ("coordinator.example", 9000)),
        ("a_b-c.example.", ("a_b-c.example.", 8443)),
        ("10.0.0.7", ("10.0.0.7", 8443)),
        ("[fe80::1]:1", ("fe80::1", 1)),
        ("localhost", ("localhost", 8443)),
        (f"{'a' * 63}.org", (f"{'a' * 63}.org", 8443)),
    ],
)
def test_names_and_addresses_of_one_machine_are_taken(host: str, pair: tuple[str, int]) -> None:
    assert split_dialled(host) == pair


def test_every_address_can_still_be_listened_on() -> None:
    assert split_host("0.0.0.0:8443") == ("0.0.0.0", 8443)


def test_nothing_is_made_for_a_host_that_nobody_can_dial(tmp_path: Path) -> None:
    with pytest.raises(HostError):
        create(tmp_path / "home", ["coordinator.example", "0.0.0.0"], now())
    assert not (tmp_path / "home").exists()


def test_a_sites_name_that_differs_by_case_alone_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    create(home, ["127.0.0.1"], now())
    sign(home, enroll(tmp_path / "a", "north")[0], now())
    csr, _ = enroll(tmp_path / "b", "North")
    with pytest.raises(MembersError, match="North differs from north by case alone"):
        sign(home, csr, now())
    sign(home, enroll(tmp_path / "c", "north-2")[0], now())
