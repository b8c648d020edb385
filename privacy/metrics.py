"""Metrics in Prometheus' text format: a page on a port, and a file for node-exporter.

They hold what an operator may see: counts, seconds, epsilon, days, bytes, and names of runs, sites
and populations; never a value of a row. The page has no password: it belongs on loopback, or behind
something that has one.
"""

import asyncio
import ipaddress
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from privacy.event_log import EventLog
from privacy.files import FileError, write_atomic
from privacy.http.exchange import App, Receive, Scope, Send, respond
from privacy.http.http_listener import listen
from privacy.http.request_head import is_local
from privacy.http.served import serve_in_thread

__all__ = ["Collector", "Metric", "counter", "exported", "from_log", "gauge"]

_EVERY_SECONDS: Final = 15.0


class MetricsError(ValueError):
    """An address at which no metrics can be shown: one line."""


def gauge(name: str, what: str, samples: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    """A value that goes up and down: one sample for each tuple of the labels' values."""
    family = GaugeMetricFamily(name, what, labels=labels)
    for values, number in samples.items():
        family.add_metric(list(values), number)
    return family


def counter(name: str, what: str, samples: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    """A count since the process began."""
    family = CounterMetricFamily(name, what, labels=labels)
    for values, number in samples.items():
        family.add_metric(list(values), number)
    return family


def from_log(log: EventLog) -> Iterator[Metric]:
    """What the log has counted: events by name, and the reasons of those that have one."""
    counts = log.counted()
    events: dict[tuple[str, ...], float] = {}
    reasons: dict[tuple[str, ...], float] = {}
    for (event, reason), number in counts.items():
        events[event,] = events.get((event,), 0) + number
        if reason:
            reasons[event, reason] = number
    yield counter("tacit_events", "Lines of the log, by event.", events, "event")
    what = "Refusals and losses, by event and reason."
    yield counter("tacit_reasons", what, reasons, "event", "reason")


@contextmanager
def exported(collector: Collector, *, where: str | None, file: Path | None) -> Iterator[str | None]:
    """Show a collector's metrics while the block runs; the page's address, if there is one.

    `where` is HOST:PORT; `file` is replaced every 15 s, and once more at the end.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    served = None
    if where is not None:
        host, port = _split(where)
        listener = listen(host, port, option="--metrics")
        loopback = ipaddress.ip_address(host).is_loopback
        served = serve_in_thread(listener, _page(registry, loopback), name="metrics")
    over = threading.Event()
    writer = threading.Thread(target=_write, args=(registry, file, over), name="metrics-file")
    if file is not None:
        writer.start()
    try:
        yield None if served is None else f"{served.url}metrics"
    finally:
        over.set()
        if file is not None:
            writer.join(10)
        if served is not None:
            served.close()


def _split(where: str) -> tuple[str, int]:
    host, _, port = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        host = "127.0.0.1" if host == "localhost" else str(ipaddress.ip_address(host))
        number = int(port)
    except ValueError:
        host, number = "", -1
    if not host or not 0 <= number < 65536:
        raise MetricsError(f"--metrics must be ADDRESS:PORT such as 127.0.0.1:9464, got {where}")
    return host, number


def _page(registry: CollectorRegistry, loopback: bool) -> App:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if loopback and not is_local(scope, ("127.0.0.1", "localhost", "::1")):
            # A page elsewhere may point its own name at loopback (DNS rebinding).
            await respond(send, 421, b"the Host field must be this machine's own name")
        elif scope["path"] not in ("/", "/metrics"):
            await respond(send, 404, b"no such path")
        elif scope["method"] != "GET":
            await respond(send, 405, b"must be GET", headers=((b"allow", b"GET, HEAD"),))
        else:
            body = await asyncio.to_thread(generate_latest, registry)
            await respond(send, 200, body, CONTENT_TYPE_LATEST.encode())

    return app


def _write(registry: CollectorRegistry, file: Path | None, over: threading.Event) -> None:
    """Replace the file again and again; once more after `over` is set."""
    last = False
    while file is not None:
        with suppress(FileError):  # a full disk: the next one may fit
            write_atomic(file, generate_latest(registry), mode=0o644, durable=False)
        if last:
            return
        last = over.wait(_EVERY_SECONDS)
