"""The process around the local service: its socket, its signals, its look-out for newer models."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from client.inference.export import refuse_private
from client.models.loading import Model, ModelError, Tasks
from client.models.provenance import Trust
from client.serving.address import Limits, Listening, say
from client.serving.service import HTTP_LIMITS, Service
from client.tasks.registry import task_of
from privacy.http.http_listener import HttpListener, ListenError, listen

_GRACE_SECONDS: Final = 10.0
"""How long a stop waits for answers that are under way."""


def run(
    model: Model,
    where: Listening,
    limits: Limits,
    *,
    newest: Callable[[], Path],
    trust: Trust,
    refresh: float,
    tasks: Tasks = task_of,
) -> None:
    """Serve until SIGINT or SIGTERM; requests that are under way are answered first."""
    if not where.loopback:
        refuse_private(model)
    service = Service(model, where, limits, tasks)
    try:
        listener = listen(where.host, where.port)
    except ListenError as error:
        raise ModelError(str(error)) from None
    server = HttpListener(listener, service, HTTP_LIMITS)
    host, port = server.address
    say(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
    asyncio.run(_until_stopped(server, service, newest, trust, refresh))
    service.thread.shutdown()
    service.current.close()


async def _until_stopped(
    server: HttpListener,
    service: Service,
    newest: Callable[[], Path],
    trust: Trust,
    refresh: float,
) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    watching = asyncio.create_task(_watch(service, newest, trust, refresh))
    try:
        await server.serve(stop, grace=_GRACE_SECONDS)
    finally:
        watching.cancel()


async def _watch(
    service: Service, newest: Callable[[], Path], trust: Trust, refresh: float
) -> None:
    """Look for a newer model now and then; what stands in its way is told once."""
    last_error = ""
    while True:
        await asyncio.sleep(refresh)
        try:
            await asyncio.to_thread(service.renew, newest, trust)
            last_error = ""
        except (ModelError, OSError) as error:
            if str(error) != last_error:
                last_error = str(error)
                say(f"keeping round {service.current.model.card.round}: {last_error}")
