"""Names and addresses of a coordinator: how they are written, and which can be dialled."""

import ipaddress
import re
from typing import Final

DEFAULT_PORT: Final = 8443
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)\Z")


class HostError(ValueError):
    """A name or an address that cannot be used: one line."""


def split_host(host: str, default: int = DEFAULT_PORT) -> tuple[str, int]:
    """`name`, `name:port`, `1.2.3.4:port`, `[::1]:port` or `::1` into name and port; HostError."""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        port = port.removeprefix(":")
    elif host.count(":") == 1:
        name, _, port = host.partition(":")
    else:
        name, port = host, ""
    if port and not (port.isascii() and port.isdigit() and 0 <= int(port) < 65536):
        raise HostError(f"host: expected NAME_OR_IP[:PORT], got {host!r:.80}")
    if not name:
        raise HostError(f"host: expected NAME_OR_IP[:PORT], got {host!r:.80}")
    return name, int(port) if port else default


def split_dialled(host: str) -> tuple[str, int]:
    """The same of a host that sites dial: one address or one name of DNS; HostError."""
    name, port = split_host(host)
    try:
        number = ipaddress.ip_address(name)
    except ValueError:
        labels = name.removesuffix(".").split(".")
        if len(name) > 253 or not all(map(_LABEL.match, labels)) or labels[-1].isdigit():
            raise HostError(
                "--host must be a name that sites can dial (letters, digits and '-', at most 63 "
                f"between dots), got {name!r:.80}"
            ) from None
    else:
        if number.is_unspecified or number.is_multicast:
            raise HostError(
                f"--host must be an address that sites can dial, got {name} (to listen on every "
                "address is --listen's)"
            )
    return name, port


def joined_host(pair: tuple[str, int]) -> str:
    """Name and port as one text."""
    name, port = pair
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
