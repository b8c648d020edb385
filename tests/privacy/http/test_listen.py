"""One socket for IPv6 and IPv4."""

import socket
from contextlib import closing

import pytest

from privacy.http.http_listener import ListenError, listen

has_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")


def reaches(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), 5):
            return True
    except OSError:
        return False


@has_ipv6
@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("::", {"127.0.0.1", "::1"}),
        ("::1", {"::1"}),
        ("0.0.0.0", {"127.0.0.1"}),
        ("127.0.0.1", {"127.0.0.1"}),
    ],
)
def test_the_unspecified_ipv6_address_takes_both_and_every_other_itself(
    address: str, reached: set[str]
) -> None:
    with closing(listen(address, 0)) as listener:
        port = listener.getsockname()[1]
        assert {host for host in ("127.0.0.1", "::1") if reaches(host, port)} == reached


@has_ipv6
def test_a_port_that_is_taken_for_ipv4_is_not_free_for_both() -> None:
    with closing(listen("0.0.0.0", 0)) as taken, pytest.raises(ListenError):
        listen("::", taken.getsockname()[1])
