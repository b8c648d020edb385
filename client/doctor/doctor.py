"""Everything that keeps a client from running or from taking part, each with its next step."""

import datetime
import shlex
from collections.abc import Iterator
from pathlib import Path

from client.agent.credentials import Enrolled, EnrolmentError
from client.agent.route import ENVIRONMENT, RouteError, route
from client.doctor.folder_check import folder
from client.doctor.network_check import connection
from client.doctor.participation import participation
from client.tasks.packages.confinement import protections
from privacy.audit_trail import FILE, read
from privacy.commands.checks import Check, flower
from privacy.identity.keys import IdentityError
from privacy.ledger.chain import LedgerError


def examine(
    directory: Path, server: str | None, data: str, policy: Path | None, proxy: str = ENVIRONMENT
) -> list[Check]:
    """All checks in the order in which they build on each other."""
    site = Enrolled(directory)
    checks = [flower(), *_identity(site)]
    if not any(one.state == "FAULT" for one in checks[1:]):
        try:
            checks += connection(site, route(site.hosts, server, proxy))
        except RouteError as error:
            checks.append(Check("name", "FAULT", str(error), "check --server and --proxy"))
    checks += participation(directory, policy, data)
    checks.append(_closed())
    if directory.is_dir():
        checks.append(_audit_log(directory))
    checks += folder(directory)
    return checks


def _identity(site: Enrolled) -> Iterator[Check]:
    where = f"--dir {shlex.quote(str(site.folder))}"
    if not site.about.is_file():
        then = f"tacit-client enroll --site NAME {where}, then join"
        yield Check("identity", "FAULT", f"{site.folder}: no site here", then)
        return
    try:
        name = site.joined().name
        certificate = site.read_certificate()
    except (EnrolmentError, IdentityError, OSError) as error:
        then = f"send the .csr to the coordinator; then tacit-client join NAME.bundle {where}"
        yield Check("identity", "FAULT", str(error), then)
        return
    age = certificate.age(datetime.datetime.now(datetime.UTC))
    ends = f"{name}, valid to {certificate.ends:%Y-%m-%d}"
    renew = f"the coordinator: tacit-server renew {name}; then tacit-client join {where}"
    outcomes = {
        "good": ("fine", ""),
        "soon": ("warn", f"nothing while it connects: it renews itself; else {renew}"),
        "expired": ("FAULT", renew),
    }
    state, then = outcomes.get(age, ("FAULT", "not valid yet: set this machine's clock"))
    yield Check("certificate", state, f"{ends} ({age})", then)


def _audit_log(directory: Path) -> Check:
    try:
        read(directory)
    except LedgerError as error:
        then = "keep the file and ask who changed it; restore it from a backup"
        return Check("audit log", "FAULT", str(error), then)
    return Check("audit log", "fine", FILE)


def _closed() -> Check:
    """Whether a task package's reading and encoding can be closed wholly on this machine."""
    missing = [name for name, there in protections().items() if not there]
    if not missing:
        return Check("closed processes", "fine", "namespaces, Landlock, seccomp")
    text = f"this machine has no {', '.join(missing)}: task packages are closed less tightly"
    return Check("closed processes", "warn", text, "a Linux kernel that allows them")
