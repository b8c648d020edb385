"""The way to the coordinator: which of its addresses, through which HTTP proxy, and how soon again.

A proxy opens a tunnel (CONNECT) and sees only encrypted bytes: TLS runs from this process to the
coordinator, with certificates on both sides. A proxy that opens TLS is refused.
"""

import itertools
import os
import random
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx

ENVIRONMENT: Final = "env"
DIRECT: Final = "none"
_SCHEMES: Final = ("http", "https")
_PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
_SPREAD_MOST: Final = 120


class RouteError(ValueError):
    """An address or a proxy that cannot be used: one line."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy; its login is part of `url` and of nothing that is shown."""

    url: str = field(repr=False)

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urllib.parse.urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def split_address(server: str) -> tuple[str, int]:
    """`host:port` or `[::1]:port`; RouteError."""
    host, _, port = server.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise RouteError(f"--server must be HOST:PORT, got {server!r:.80}")
    return host, int(port)


def proxy_for(
    server: str, setting: str, environment: Mapping[str, str] | None = None
) -> Proxy | None:
    """The proxy that leads to `server`: None for a direct connection.

    `setting` is "none", the URL of a proxy, or "env": HTTPS_PROXY, else ALL_PROXY, unless NO_PROXY
    names the server (a host, a domain, or "*").
    """
    if setting == DIRECT:
        return None
    if setting != ENVIRONMENT:
        return _proxy("--proxy", setting)
    variables = environment if environment is not None else os.environ
    lower = {name.lower(): value for name, value in variables.items() if value}
    for name in ("https_proxy", "all_proxy"):
        if name in lower:
            host, port = split_address(server)
            without = {"no": lower.get("no_proxy", "")}
            if urllib.request.proxy_bypass_environment(f"{host}:{port}", without):  # type: ignore[attr-defined]
                return None
            return _proxy(name.upper(), lower[name])
    return None


def _proxy(what: str, text: str) -> Proxy:
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in _SCHEMES and parts.hostname and parts.path in ("", "/")
        _ = parts.port
    except ValueError:
        usable = False
    if not usable:
        raise RouteError(f"{what} must be http://[USER:PASSWORD@]HOST:PORT, env or none")
    return Proxy(url)


@dataclass(slots=True)
class Route:
    """The addresses of one coordinator, tried in turn, each by its own way."""

    servers: Sequence[str]
    proxy: str = ENVIRONMENT
    _next: int = 0

    def __post_init__(self) -> None:
        for server in self.servers:
            split_address(server)
            proxy_for(server, self.proxy)
        if not self.servers:
            raise RouteError("--server must be HOST:PORT: the bundle names no address")

    @property
    def server(self) -> str:
        """The address to dial now."""
        return self.servers[self._next]

    def via(self) -> Proxy | None:
        """The proxy that leads to it."""
        return proxy_for(self.server, self.proxy)

    def advance(self) -> bool:
        """Dial the next address from now on; True where all of them have been tried."""
        self._next = (self._next + 1) % len(self.servers)
        return self._next == 0


def route(hosts: Sequence[str], server: str | None, proxy: str) -> Route:
    """The route by the command's options: `server`, or every address of the bundle."""
    listed = [server] if server is not None else list(hosts)
    return Route(list(itertools.islice(dict.fromkeys(listed), 32)), proxy)


class Pauses:
    """How long to wait before the coordinator is dialled again."""

    def __init__(self) -> None:
        self._spread = 0

    def after(self, failures: int) -> float:
        """Longer after each failure; from the second on spread out, where there are many sites."""
        pause = _PAUSES[min(failures, len(_PAUSES) - 1)] * random.uniform(0.8, 1.2)  # noqa: S311
        return pause + (random.uniform(0, self._spread) if failures else 0.0)  # noqa: S311

    def told(self, response: httpx.Response) -> None:
        """An answer says over how many seconds all sites shall come back when they are cut off."""
        said = response.headers.get("retry-after", "0")
        if said.isascii() and said.isdigit() and len(said) < 6:
            self._spread = min(int(said), _SPREAD_MOST)
