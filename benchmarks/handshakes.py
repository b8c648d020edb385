"""So many sites dial a coordinator in the same moment: how long until each has had an answer.

The coordinator's TLS server in this process, mutual TLS on 127.0.0.1; the clients in a child, which
shares the cores, all with one site's certificate and one request each. Whoever gets no answer
within `--patience` seconds, or is cut off, comes again 0.2 to 2 s later.

    python benchmarks/handshakes.py [--sites 500] [--patience 30]
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import ssl
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from table import save, show, versions

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from privacy.runtime import prepare

prepare()

from client.agent.credentials import Enrolled
from tests.support.federation import Events, coordinator, linked

FORK = multiprocessing.get_context("fork")
REQUEST = b"POST /v1/fleet/none HTTP/1.1\r\nhost: coordinator\r\ncontent-length: 0\r\n\r\n"


def main() -> None:
    """One line and its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=500)
    parser.add_argument("--patience", type=float, default=30.0)
    chosen = parser.parse_args()
    log = Events()
    with tempfile.TemporaryDirectory(prefix="tacit-handshakes-") as folder:
        home, sites = coordinator(Path(folder), "a")
        here, there = FORK.Pipe()
        child = FORK.Process(
            target=dial, args=(there, sites["a"], chosen.sites, chosen.patience), daemon=True
        )
        child.start()  # before the coordinator has threads
        with linked(home, log) as grid:
            before = time.process_time()
            here.send(grid.address)
            found: dict[str, Any] = json.loads(here.recv())
            found["cpu"] = time.process_time() - before
        child.join(10)
    refused = Counter(str(line.get("why")) for line in log.lines)
    found["not finished"] = refused["handshake not finished"] + refused["too many handshakes"]
    cells = [f"{found['seconds']:.1f}", f"{found['cpu']:.2f}", f"{found['tries']}"]
    columns = ["sites", "s until all are answered", "coordinator CPU s", "tries", "thrown away"]
    show(
        "Sites that dial together",
        columns,
        [[str(chosen.sites), *cells, str(found["not finished"])]],
    )
    print(save("handshakes", {str(chosen.sites): found, "versions": versions("cryptography")}))


def dial(pipe: Connection, site: Path, count: int, patience: float) -> None:
    """The sites' process."""
    context, tries = Enrolled(site).tls(), [0]
    address = pipe.recv()

    async def one() -> None:
        while True:
            tries[0] += 1
            try:
                async with asyncio.timeout(patience):
                    if await answered(address, context, patience):
                        return
            except (OSError, ssl.SSLError):
                pass
            await asyncio.sleep(random.uniform(0.2, 2.0))

    async def everybody() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(count)))
        return time.perf_counter() - began

    seconds = asyncio.run(everybody())
    pipe.send(json.dumps({"seconds": seconds, "tries": tries[0]}))


async def answered(address: tuple[str, int], context: ssl.SSLContext, patience: float) -> bool:
    """One connection and one request; whether an answer came."""
    reader, writer = await asyncio.open_connection(
        *address, ssl=context, server_hostname="127.0.0.1", ssl_handshake_timeout=patience
    )
    try:
        writer.write(REQUEST)
        await writer.drain()
        return bool(await reader.readline())
    finally:
        writer.transport.abort()


if __name__ == "__main__":
    main()
