"""The head of a request as an ASGI scope, or the status with which it is refused."""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import h11

from privacy.http.exchange import HttpError, HttpLimits, Scope

_VERSIONS: Final = (b"1.0", b"1.1")


def field_values(request: h11.Request, name: bytes) -> bytes:
    """A field's values as one list."""
    return b",".join(value for key, value in request.headers if key == name)


def scope_of(request: h11.Request, limits: HttpLimits) -> dict[str, Any]:
    """The ASGI scope; HttpError for what h11 lets pass and RFC 9112 or the limits do not."""
    target = request.target
    if request.http_version not in _VERSIONS:
        raise HttpError(505, "the version must be 1.0 or 1.1")
    if len(target) > limits.line:
        raise HttpError(414, "the request line is too long")
    if len(request.headers) > limits.fields:
        raise HttpError(431, f"at most {limits.fields} header fields are accepted")
    hosts = [value for name, value in request.headers if name == b"host"]
    if len(hosts) != 1:
        raise HttpError(400, "exactly one Host field is required")
    if field_values(request, b"transfer-encoding"):
        if field_values(request, b"content-length"):
            raise HttpError(400, "a body has a Content-Length or a Transfer-Encoding, not both")
        if not limits.chunked:
            raise HttpError(411, "a Content-Length is required")
    if not target.startswith(b"/"):
        try:
            parts = urlsplit(target.decode("ascii"))
            host = parts.netloc.lower()
        except ValueError:
            raise HttpError(400, "malformed target") from None
        if parts.scheme not in ("http", "https") or host != hosts[0].decode("latin-1").lower():
            raise HttpError(400, "the target must name the host of the Host field")
        target = (parts.path or "/").encode() + (
            b"?" + parts.query.encode() if parts.query else b""
        )
    path, _, search = target.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": request.http_version.decode("ascii"),
        "method": "GET" if request.method == b"HEAD" else request.method.decode("ascii"),
        "scheme": "http",
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": search,
        "root_path": "",
        "headers": [(bytes(name), bytes(value)) for name, value in request.headers],
    }


def is_local(scope: Scope, names: Sequence[str] = ("127.0.0.1", "localhost")) -> bool:
    """Whether a request names this machine, once: a page may point its own name at loopback.

    >>> is_local({"headers": [(b"host", b"localhost:8800")]}), is_local({"headers": []})
    (True, False)
    """
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1:
        return False
    host = hosts[0].decode("latin-1").lower()
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        return host.strip("[]") in names
    return name.strip("[]") in names and port.isascii() and port.isdigit()
