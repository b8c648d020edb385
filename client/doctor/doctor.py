"""Everything that keeps a client from running, told apart, each with its next step."""

import datetime
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

from client.agent import populations
from client.agent.credentials import Enrolled, EnrolmentError
from client.agent.route import ENVIRONMENT, RouteError, route
from client.data.check import check
from client.data.site_rows import Source
from client.doctor.check import Check
from client.doctor.network_check import connection
from client.tasks.packages.confinement import protections
from client.tasks.registry import task_of_schema
from privacy.audit_trail import FILE, read
from privacy.contract.policy import load_policy
from privacy.identity.keys import IdentityError

FLOWER: Final = "1.41.0"


def examine(
    directory: Path, server: str | None, data: str, policy: Path | None, proxy: str = ENVIRONMENT
) -> list[Check]:
    """All checks in the order in which they build on each other."""
    site = Enrolled(directory)
    found = [_flower(), *_identity(site)]
    if not any(one.state == "FAULT" for one in found[1:]):
        try:
            found += connection(site, route(site.hosts, server, proxy))
        except RouteError as error:
            found.append(Check("name", "FAULT", str(error), "check --server and --proxy"))
    found.append(_policy(directory, policy, data))
    found.append(_closed())
    found += _data(directory, data)
    then = "keep the file and ask who changed it; restore it from a backup (docs/federation.md)"
    if directory.is_dir():
        found.append(_tried("audit log", FILE, lambda: read(directory), then))
    free = shutil.disk_usage(directory if directory.is_dir() else Path()).free
    state = "fine" if free > 1 << 28 else "FAULT"
    found.append(Check("disk", state, f"{free >> 20} MiB free", "" if state == "fine" else "free"))
    return found


def _flower() -> Check:
    installed = version("flwr")
    if installed == FLOWER:
        return Check("Flower", "fine", installed)
    return Check("Flower", "FAULT", f"{installed}, expected {FLOWER}", "install tacit again")


def _identity(site: Enrolled) -> Iterator[Check]:
    try:
        name = site.joined().name
        certificate = site.read_certificate()
    except (EnrolmentError, IdentityError, OSError) as error:
        yield Check("identity", "FAULT", str(error), "tacit-client enroll, then join")
        return
    loose = [p.name for p in (site.key, site.signing_key) if p.stat().st_mode & 0o077]
    if loose:
        yield Check("keys", "FAULT", f"{', '.join(loose)}: others can read it", "chmod 600")
    age = certificate.age(datetime.datetime.now(datetime.UTC))
    ends = f"{name}, valid to {certificate.ends:%Y-%m-%d}"
    renew = f"the coordinator: tacit-server renew {name}; then tacit-client join"
    said = {"good": ("fine", ""), "soon": ("warn", renew), "expired": ("FAULT", renew)}
    state, then = said.get(age, ("FAULT", "not valid yet: set this machine's clock"))
    yield Check("certificate", state, f"{ends} ({age})", then)


def _policy(directory: Path, policy: Path | None, data: str) -> Check:
    path = policy or directory / "policy.toml"
    if not path.is_file() and data.startswith("builtin:"):
        return Check("policy", "warn", "none: the built-in one serves embedded data")
    try:
        load_policy(path)
    except (ValueError, OSError) as error:
        return Check("policy", "FAULT", str(error), "tacit-client policy new")
    return Check("policy", "fine", str(path))


def _closed() -> Check:
    """Whether a task package's reading and encoding can be closed wholly on this machine."""
    missing = [name for name, there in protections().items() if not there]
    if not missing:
        return Check("closed processes", "fine", "namespaces, Landlock, seccomp")
    said = f"this machine has no {', '.join(missing)}: task packages are closed less tightly"
    return Check("closed processes", "warn", said, "a Linux kernel that allows them")


def _data(directory: Path, data: str) -> Iterator[Check]:
    if data:
        yield _tried("data", data, lambda: Source.parse(data), "check --data")
        source = Path(data)
        if source.exists() and not os.access(source, os.R_OK):
            yield Check("data", "FAULT", f"{data}: not readable", "check its owner and mode")
        elif source.exists():
            yield from _rows(directory, source)
    for one in populations.known(directory):
        yield _tried(
            "ledger",
            one.ledger,
            partial(_trusted, one),
            "tacit-client ledger recover --record FILE, or ledger acknowledge (docs/federation.md)",
        )


def _rows(directory: Path, data: Path) -> Iterator[Check]:
    """The file under its registered schema; nothing of it is said but counts."""
    try:
        schema = populations.schema_of(directory, data)
    except ValueError:
        return
    if schema is None:
        return
    try:
        found = check(task_of_schema(schema), data)
    except (ValueError, OSError) as error:
        yield Check("rows", "FAULT", str(error), "tacit-client data check")
        return
    said = f"{found.rows} rows on {found.lines} lines, {found.left_out} would be left out"
    yield Check("rows", "warn" if found.worst() else "fine", said, "tacit-client data check")


def _trusted(one: populations.Population) -> None:
    if not populations.open_ledger(one).trusted():
        raise EnrolmentError(f"{one.ledger}: its log remembers more than it holds")


def _tried(what: str, said: str, check: Callable[[], object], then: str) -> Check:
    try:
        check()
    except (ValueError, OSError) as error:
        return Check(what, "FAULT", str(error), then)
    return Check(what, "fine", said)
