"""The doctor's look at the site's folder: owners, modes, disk, and whether its client runs."""

import fcntl
import pwd
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from client.agent.credentials import Enrolled
from privacy.commands.checks import Check

_LEAST_FREE: Final = 1 << 28
_SHOWN: Final = 3


def folder(directory: Path) -> Iterator[Check]:
    """Keys that others can read, files of another user, the process, the space that is left."""
    site = Enrolled(directory)
    private = (site.key, site.signing_key)
    loose = [path for path in private if path.is_file() and path.stat().st_mode & 0o077]
    if loose:
        names = ", ".join(path.name for path in loose)
        command = f"chmod 600 {shlex.join(map(str, loose))}"
        yield Check("keys", "FAULT", f"{names}: others can read it", command)
    yield from _owners(directory)
    yield _process(directory)
    free = shutil.disk_usage(directory if directory.is_dir() else Path()).free
    then = "" if free > _LEAST_FREE else f"free space on the disk of {directory.absolute()}"
    yield Check("disk", "FAULT" if then else "fine", f"{free >> 20} MiB free", then)


def _owners(directory: Path) -> Iterator[Check]:
    """Files that the folder's owner does not own: the service runs as that user."""
    if not directory.is_dir():
        return
    owner = directory.stat().st_uid
    foreign = [p for p in sorted(directory.rglob("*")) if p.lstat().st_uid != owner]
    if not foreign:
        return
    names = ", ".join(str(path.relative_to(directory)) for path in foreign[:_SHOWN])
    more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
    text = f"{names}{more}: not of {_name(owner)}, whose folder it is and as whom the service runs"
    command = f"chown -R {_name(owner)} {shlex.quote(str(directory.absolute()))}"
    yield Check("owner", "FAULT", text, command)


def _name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _process(directory: Path) -> Check:
    try:
        with (directory / ".running").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return Check("process", "fine", "the client runs")
    except OSError:
        pass
    then = f"tacit-client run --dir {shlex.quote(str(directory))}, or start its service"
    return Check("process", "warn", "the client does not run", then)
