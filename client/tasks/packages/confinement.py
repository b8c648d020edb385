"""Closing a process: no network, no secrets, no write access, bounded in memory, time and number.

Each measure stands by itself; `protections()` says which of them this machine has. Linux only:
namespaces(7), landlock(7), seccomp(2), getrlimit(2).
"""

import contextlib
import ctypes
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.tasks.packages import system_calls

_NEWUSER, _NEWNET, _NEWIPC, _NEWUTS = 0x10000000, 0x40000000, 0x08000000, 0x04000000
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FS_BY_VERSION: Final = (0, 13, 14, 15, 15, 16)
"""How many access rights Landlock knows, by its version."""
LIBRARIES: Final = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/etc/ld.so.cache")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a closed process may use: bytes of memory, seconds of CPU, seconds without a word."""

    memory: int = 6 * 2**30
    cpu: int = 3600
    silence: float = 300.0


def isolate() -> list[str]:
    """Leave the network; to be called before a thread is started. What could not be done."""
    if sys.platform != "linux":
        return ["namespaces"]
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_NEWUSER | _NEWNET | _NEWIPC | _NEWUTS) == 0:
        with contextlib.suppress(OSError):  # without its own user it still is without a network
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        return []
    if libc.unshare(_NEWNET | _NEWIPC) == 0:
        return []
    return ["namespaces"]


def confine(readable: Sequence[Path], bounds: Bounds) -> list[str]:
    """Allow only to read `readable` and the libraries. What this machine could not do."""
    missing = []
    _limit(bounds)
    with contextlib.suppress(OSError):
        _no_dump()
    try:
        _landlock([*map(Path, LIBRARIES), *map(Path, DEVICES), *readable])
    except OSError:
        missing.append("landlock")
    try:
        if not system_calls.supported():
            raise OSError("not known here")
        system_calls.refuse()
    except OSError:
        missing.append("seccomp")
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))
    return missing


def protections() -> dict[str, bool]:
    """What this machine has to close a process with, tried in a process that then ends."""
    facts = {"namespaces": False, "landlock": landlock_version() > 0, "seccomp": False}
    if sys.platform != "linux":
        return facts
    tried = subprocess.run(
        [sys.executable, "-I", "-c", _TRY.format(root=str(Path(__file__).resolve().parents[3]))],
        capture_output=True,
        timeout=60,
        check=False,
    )
    words = tried.stdout.decode("ascii", "replace").split()
    return facts | {name: name in words for name in ("namespaces", "seccomp")}


_TRY: Final = """
import sys
sys.path.insert(0, {root!r})
from client.tasks.packages import confinement, system_calls
if not confinement.isolate():
    print("namespaces")
try:
    if system_calls.supported():
        system_calls.refuse()
        print("seccomp")
except OSError:
    pass
"""


def _limit(bounds: Bounds) -> None:
    wanted = {
        resource.RLIMIT_DATA: bounds.memory,
        resource.RLIMIT_CPU: bounds.cpu,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 256,
    }
    for name, most in wanted.items():
        _, hard = resource.getrlimit(name)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(name, (most, most))


def _no_dump() -> None:
    """Others of the same user may not look into this process, nor take its memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def landlock_version() -> int:
    """Landlock's version on this kernel; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    version: int = ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, 0, 1)
    return max(version, 0)


def _landlock(readable: Sequence[Path]) -> None:
    version = landlock_version()
    if not version:
        raise OSError("no Landlock")
    libc = ctypes.CDLL(None, use_errno=True)
    handled = (1 << _FS_BY_VERSION[min(version, len(_FS_BY_VERSION) - 1)]) - 1
    attributes = struct.pack("Q", handled)
    if version >= 4:
        attributes += struct.pack("Q", 3)  # bind and connect of TCP
    if version >= 6:
        attributes += struct.pack("Q", 3)  # signals and abstract sockets outside
    ruleset = libc.syscall(_CREATE, ctypes.create_string_buffer(attributes), len(attributes), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    try:
        for path in readable:
            _allow(libc, ruleset, path)
        if libc.prctl(38, 1, 0, 0, 0) or libc.syscall(_RESTRICT, ruleset, 0):
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # a library's folder that is not there
        return
    try:
        access = _READ_FILE | (_READ_DIR if path.is_dir() else 0)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor))
        if libc.syscall(_ADD, ruleset, 1, rule, 0):
            raise OSError(ctypes.get_errno(), "landlock_add_rule")
    finally:
        os.close(descriptor)
