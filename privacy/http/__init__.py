"""The HTTP/1.1 server of every port: bounded in bytes, time and connections (RFC 9110, RFC 9112).

The fleet's port, `tacit-client serve` and the dashboards run their ASGI applications behind it.
"""
