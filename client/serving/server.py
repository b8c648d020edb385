"""The process around the local service: its socket, its signals, its look-out for newer models."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from client.inference.export import refuse_private
from client.models.loading import Model, ModelError
from client.models.provenance import Trust
from client.serving.address import Limits, Listening, say
from client.serving.service import PATIENCE, Service


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: a stop ends with status 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(
    model: Model,
    where: Listening,
    limits: Limits,
    *,
    newest: Callable[[], Path],
    trust: Trust,
    refresh: float,
) -> None:
    """Serve until SIGINT or SIGTERM; requests that are under way are answered first."""
    if not where.loopback:
        refuse_private(model)
    service = Service(model, where, limits)
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by each connection: an answer's second part must not wait for the first's
        # acknowledgement (40 ms).
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            bound.bind((where.host, where.port))
        except OSError as error:
            raise ModelError(
                f"listen: expected a free address, got {where.host}:{where.port} ({error.strerror})"
            ) from error
        config = uvicorn.Config(
            service,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(PATIENCE),
        )
        host, port = bound.getsockname()[:2]
        say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
        asyncio.run(_until_stopped(_Server(config), service, bound, newest, trust, refresh))
    service.thread.shutdown()


async def _until_stopped(
    server: uvicorn.Server,
    service: Service,
    bound: socket.socket,
    newest: Callable[[], Path],
    trust: Trust,
    refresh: float,
) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    watching = asyncio.create_task(_watch(service, newest, trust, refresh))
    try:
        await server.serve(sockets=[bound])
    finally:
        watching.cancel()


async def _watch(
    service: Service, newest: Callable[[], Path], trust: Trust, refresh: float
) -> None:
    """Look for a newer model now and then; what stands in its way is told once."""
    told = ""
    while True:
        await asyncio.sleep(refresh)
        try:
            await asyncio.to_thread(service.renew, newest, trust)
            told = ""
        except (ModelError, OSError) as error:
            if str(error) != told:
                told = str(error)
                say(f"keeping round {service.current.model.card.round}: {told}")
