"""Joining a running Ray cluster: an address where none answers is refused at once, in one line."""

import os
import socket
from typing import Final

import ray
from ray.exceptions import RayError

from privacy import runtime

_CONNECT_SECONDS: Final = 5.0


class ClusterError(ValueError):
    """A cluster that cannot be joined, or is too small: bad input, nothing was started."""


def join(address: str, key: str = "RAY_ADDRESS") -> bool:
    """Join the cluster at `address`, which came by `key`; False where this process is in one.

    ClusterError where nobody answers there.
    """
    runtime.prepare()  # who calls from a program of their own has not
    if ray.is_initialized():
        return False
    refused = f"{key} must be the HOST:PORT of a running Ray cluster, got {address!r}"
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:  # Ray itself would try for a minute
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except (OSError, ValueError, OverflowError) as error:
            raise ClusterError(f"{refused} ({error})") from None
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(f"{refused} ({str(error).splitlines()[0]})") from None
    return True


def cpus() -> int:
    """The CPUs of the cluster, each of which can hold a worker."""
    return int(ray.cluster_resources().get("CPU", 0))


def check_workers(workers: int, key: str) -> None:
    """Refuse more workers than the cluster has CPUs: the last ones would never begin."""
    if workers > cpus():
        raise ClusterError(f"{key} must be at most {cpus()}, the cluster's CPUs, got {workers}")


def address_of(given: str | None) -> tuple[str, str]:
    """The address to join and where it came from: an option, else RAY_ADDRESS; ClusterError."""
    address, key = (given, "--address") if given else (os.environ.get("RAY_ADDRESS", ""), "")
    if not address:
        raise ClusterError("--address (or RAY_ADDRESS) must be given for --engine ray")
    return address, key or "RAY_ADDRESS"
