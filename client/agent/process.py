"""What the resident client holds: the site's rules, its ledger, its rows; a log without data."""

import fcntl
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from client.agent import populations, received_plans
from client.agent.credentials import Enrolled, EnrolmentError
from client.data.cache import Cache
from client.data.site_rows import SiteRows, Source
from client.models.received import keeper
from client.site import KeptReplies, Site, SiteError
from client.tasks.packages.product import remember
from client.tasks.packages.store import Packages, keep_shown
from client.tasks.rows import TaskError
from privacy.audit_trail import read, record
from privacy.contract.plan import Plan
from privacy.contract.policy import Policy, PolicyError, builtin_policy, load_policy
from privacy.event_log import EventLog
from privacy.files import remove_stale
from privacy.identity.keys import sign, verify
from privacy.ledger.heads import Head, HeadError, payload
from privacy.ledger.ledger import Ledger, LedgerError
from privacy.task_package.archive import Package


def rules(directory: Path, source: Source, policy: Path | None, log: Callable[..., None]) -> Policy:
    """The owner's policy; for embedded data, which is public, a built-in one."""
    path = policy or directory / "policy.toml"
    if policy is None and not path.is_file():
        if source.path is not None:
            raise SiteError(
                f"{path}: no policy, expected one (write it: tacit-client policy new --dir "
                f"{directory}; then read it)"
            )
        public = builtin_policy()
        log(
            "builtin_policy",
            note="public example data: any plan within epsilon "
            f"{public.epsilon:g} at delta {public.delta:g}; never use it for real records",
        )
        return public
    return load_policy(path)


def ledger(
    directory: Path, source: Source, population: str | None
) -> tuple[Ledger, populations.Population]:
    """The one ledger of the people in the data; part of an embedded data set gets its own."""
    if source.path is not None:
        chosen = populations.choose(directory, source.path, population)
        digest = populations.fingerprint(source.path)
        populations.check_separate(directory, chosen.name, source.path, digest, chosen.separate)
        return populations.open_ledger(chosen, digest), chosen
    name = f"builtin-{source.part}-{source.parts}"
    opened, _ = populations.add(directory, name, directory / "ledgers" / f"{name}.jsonl")
    return opened, populations.choose(directory, name=name)


def device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda:N`, if it is there."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        torch_device = torch.device(name)
    except RuntimeError:
        raise SiteError(f"--device: expected auto, cpu or cuda:N, got {name!r:.40}") from None
    if torch_device.type not in ("cpu", "cuda"):
        raise SiteError(f"--device: expected auto, cpu or cuda:N, got {name!r:.40}")
    if torch_device.type == "cuda" and (torch_device.index or 0) >= torch.cuda.device_count():
        raise SiteError(f"--device: no {name} here ({torch.cuda.device_count()} CUDA devices)")
    return torch_device


def resident(
    site: Enrolled,
    source: Source,
    log: EventLog,
    *,
    policy: Path | None,
    population: str | None,
    where: str,
    look: bool = True,
    on_fault: Callable[[], None] = lambda: None,
) -> Site:
    """The site as its process holds it; the policy's file is read again before each judgement.

    The caller holds the site's folder (`alone`). `look` reads the rows now and refuses bad ones:
    only where the owner starts it, since a coordinator that could would learn of them. `on_fault`
    is called where rows could not be read in a round; the site is paused from then on.
    """
    allowed = rules(site.folder, source, policy, log)
    file = None if allowed is builtin_policy() else policy or site.folder / "policy.toml"
    site_ledger, people = ledger(site.folder, source, population)
    name, key, faulty = site.name, site.verify, threading.Event()
    followed = f"{name}@{people.id}" if people.id else name
    schema = None
    if source.path is not None:
        schema = populations.schema_of(site.folder, source.path, people.name)
    copies = Cache(populations.cache_folder(site.folder, site_ledger.population))
    rows = SiteRows(source, schema, lambda: held.policy, log, copies, people.tasks)

    def fault(error: Exception) -> None:
        """Its text is told where it is one of our own lines, which hold no value."""
        text = str(error) if isinstance(error, TaskError | SiteError) else type(error).__name__
        log(
            "data_fault", what=text, note="the round was answered with noise alone; this site stops"
        )
        faulty.set()
        on_fault()

    def on_plan(plan: Plan) -> None:
        try:
            received_plans.remember(site.folder, plan, held.policy)
        except OSError as error:  # the plan is judged all the same
            log("plan_not_kept", error=error.strerror)
        if file is not None:
            before, held.policy = held.policy, again(file, held.policy, site_ledger, log)
            if held.policy != before:
                note_policy(site.folder, file, log)

    def on_package(plan: Plan, package: Package) -> None:
        if plan.digest in held.policy.denied:
            return
        try:
            kept = keep_shown(site.folder, package)
        except OSError as error:
            log("package_not_kept", error=error.strerror)
            return
        if kept:
            log("package_shown", code=package.code, bytes=len(package.content))

    def check_head(claim: Any) -> bool:
        try:
            head = Head(claim["n"], claim["digest"])
            return verify(key, payload(followed, head), bytes.fromhex(claim["signature"]))
        except (KeyError, TypeError, ValueError, HeadError):
            return False

    remember()  # the product as it is, before any package runs beside it
    populations.log_policy(site_ledger, allowed)
    if file is not None:
        note_policy(site.folder, file, log)
    _look_at_certificate(site, log)
    packages = Packages(site.folder, lambda: held.policy.packages)
    held = Site(
        name,
        allowed,
        site_ledger,
        rows,
        replies=KeptReplies(site.folder / "replies"),
        device=device(where),
        on_event=log,
        on_model=keeper(site.folder, name, site_ledger),
        on_plan=on_plan,
        on_package=on_package,
        on_fault=fault,
        accepts=rows.accepts,
        tasks=packages,
        paused=lambda: site.paused.exists() or faulty.is_set(),
        check_head=check_head,
        coordinator=key,
        ledger_id=people.id,
        sign=lambda payload: sign(site.signing_key, payload),
    )
    if look:
        rows.check(packages.usual())
    return held


def again(file: Path, before: Policy, site_ledger: Ledger, log: EventLog) -> Policy:
    """The policy as its owner left it by now; one that cannot be read approves of nothing."""
    try:
        policy = load_policy(file)
    except PolicyError as error:
        log("policy_unreadable", problem=str(error))
        return replace(before, approve="list", plans=())
    if populations.log_policy(site_ledger, policy):
        log("policy_read", epsilon=policy.epsilon, delta=policy.delta)
    return policy


def note_policy(folder: Path, file: Path, log: EventLog) -> None:
    """Tell the audit log which policy is in force, if it is another than the last."""
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        noted = [act.fingerprint for act in read(folder) if act.command == "policy read"]
        if not noted or noted[-1] != digest:
            record(folder, "policy read", str(file), fingerprint=digest)
    except (OSError, LedgerError) as error:
        log("audit_not_written", why=str(error))


def _look_at_certificate(site: Enrolled, log: EventLog) -> None:
    """An enrolment that is over is refused, one that soon will be is told."""
    certificate = site.read_certificate()
    age = certificate.age(datetime.now(UTC))
    if age == "expired":
        raise EnrolmentError(
            f"{site.certificate}: expired on {certificate.ends:%Y-%m-%d}, expected a new bundle "
            f"(the coordinator: tacit-server renew {site.name})"
        )
    if age == "soon":
        log("certificate_expires_soon", ends=f"{certificate.ends:%Y-%m-%d}")


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold the site's folder: two clients of one site would answer each other's requests."""
    with (directory / ".running").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SiteError(f"--dir {directory}: its client runs already") from None
        remove_stale(directory, *(directory / name for name in ("replies", "models", "plans")))
        yield
