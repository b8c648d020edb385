"""`task add`, `list`, `show`, `diff`, `check`, `approve`, `remove`: whose code may run here."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from client.commands.options import HERE, Dir, Json, PolicyFile, Reason
from privacy.audit_trail import recorded
from privacy.printable import folded, printable
from privacy.task_package.archive import PackageError

Hash = Annotated[str, typer.Argument(metavar="HASH", help="The package's hash, or its beginning.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Task packages: read, examine, approve.", no_args_is_help=True)
    for command in (add, show, diff, check, approve, remove):
        group.command()(command)
    group.command("list")(list_)
    app.add_typer(group, name="task")


def add(
    file: Annotated[Path, typer.Argument(metavar="PATH", help="A packed file, or a folder.")],
    directory: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Take a package's bytes into this site's store. Nothing of it runs until it is approved."""
    from client.tasks.packages import store
    from privacy.task_package.archive import load_package
    from privacy.task_package.manifest import manifest_of

    package = load_package(file)
    manifest = manifest_of(package)
    with recorded(directory, "task add", manifest.name, fingerprint=package.digest):
        store.add(directory, package)
    if as_json:
        typer.echo(json.dumps({"name": manifest.name, "code": package.code}))
        return
    _say([f"{manifest.name} {printable(manifest.version)}: {package.code} is here, not approved"])
    typer.echo(f"read it: tacit-client task show {package.digest[:16]}")


def list_(directory: Dir = HERE, policy: PolicyFile = None, as_json: Json = False) -> None:
    """The packages that are here, and which of them are approved."""
    from client.tasks.packages import store
    from privacy.task_package.manifest import manifest_of

    approved = _approved(directory, policy)
    rows = []
    for digest in store.known(directory):
        facts: dict[str, Any] = {"code": store.PREFIX + digest}
        try:
            manifest = manifest_of(store.readable(directory, digest))
            facts |= {"name": manifest.name, "version": manifest.version}
            facts["state"] = "approved" if facts["code"] in approved else "not approved"
            if store.is_shown(directory, digest):
                facts["state"] = "shown by the coordinator, not approved"
        except PackageError as error:
            facts |= {"name": "?", "version": "?", "state": f"unusable: {error}"}
        rows.append(facts)
    if as_json:
        typer.echo(json.dumps({"packages": rows}))
        return
    for one in rows:
        typer.echo(f"{one['code'][7:23]}  {one['name']} {one['version']}: {one['state']}")
    if not rows:
        typer.echo("no package is here (tacit-client task add FILE)")


def show(hash_: Hash, directory: Dir = HERE, source: bool = False) -> None:
    """What a package is and does, for whoever decides: files, imports, what stands out.

    Its model is examined in a closed process. `--source` prints task.py too.
    """
    from client.tasks.packages import store
    from client.tasks.packages.review import examined, shown

    package = store.readable(directory, store.find(directory, hash_))
    _say(shown(package, examined(package)))
    if source:
        for number, line in enumerate(package.source.splitlines(), 1):
            _say([f"{number:4} {printable(line.replace(chr(9), '    '), 400)}"])


def diff(
    hash_: Hash,
    other: Annotated[
        str | None, typer.Argument(metavar="[OLD]", help="Else the one approved last.")
    ] = None,
    directory: Dir = HERE,
    policy: PolicyFile = None,
) -> None:
    """What a package changes since another one."""
    from client.tasks.packages import store
    from client.tasks.packages.review import difference

    new = store.readable(directory, store.find(directory, hash_))
    digest = None if other is None else store.find(directory, other)
    if digest is None:
        here = [code.removeprefix(store.PREFIX) for code in _approved(directory, policy)]
        known = [one for one in here if one in store.known(directory) and one != new.digest]
        if not known:
            raise PackageError("no package was approved before it: tacit-client task show HASH")
        digest = known[-1]
    _say(difference(store.readable(directory, digest), new))


def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder, or a packed file.")],
    data: Annotated[
        Path | None, typer.Option(help="Also read these rows, and encode some of them again.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read a package, examine its model, and encode rows, all in closed processes; exit 2."""
    from client.tasks.packages.package_task import package_task
    from client.tasks.packages.review import examined, shown
    from privacy.task_package.archive import load_package

    package = load_package(path)
    report = examined(package)
    if not as_json:
        _say(shown(package, report))
    if report["refused"]:
        raise PackageError(str(report["refused"]))
    facts: dict[str, Any] = {"code": package.code, "examined": report}
    if data is not None:
        rows = package_task(package, {}, tell=True).load(data, "all")
        facts["data"] = {"rows": len(rows), "reading": str(rows.reading)}
        if not as_json:
            typer.echo(f"data: {rows.reading}; each row encodes alone")
    if as_json:
        typer.echo(json.dumps(facts))


def approve(
    hash_: Hash,
    directory: Dir = HERE,
    policy: PolicyFile = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Allow a package's code to run at this site: it is then trusted like the product itself.

    Refused where the source is refused, or where its model fails the examination.
    """
    from client.agent.received_plans import approve_package
    from client.tasks.packages import store
    from client.tasks.packages.review import examined
    from privacy.task_package.manifest import manifest_of

    digest = store.find(directory, hash_)
    package = store.readable(directory, digest)
    report = examined(package)
    if report["refused"]:
        raise PackageError(f"{digest[:16]}: cannot be approved: {report['refused']}")
    manifest = manifest_of(package)
    with recorded(directory, "task approve", manifest.name, fingerprint=digest, reason=reason):
        store.take_shown(directory, package)
        approve_package(policy or directory / "policy.toml", package.code)
    if as_json:
        typer.echo(json.dumps({"code": package.code, "state": "approved"}))
        return
    _say([f"{manifest.name} {printable(manifest.version)}: {package.code} is approved"])
    typer.echo("its code is trusted like the product; plans are approved by themselves, as before")


def remove(
    hash_: Hash,
    directory: Dir = HERE,
    policy: PolicyFile = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Forget a package, and take its approval back."""
    from client.agent.received_plans import approve_package
    from client.tasks.packages import store

    digest = store.find(directory, hash_)
    path = policy or directory / "policy.toml"
    with recorded(directory, "task remove", digest[:16], fingerprint=digest, reason=reason):
        if path.is_file():
            approve_package(path, store.PREFIX + digest, allowed=False)
        store.remove(directory, digest)
    typer.echo(
        json.dumps({"code": store.PREFIX + digest, "state": "removed"})
        if as_json
        else f"{digest[:16]}: removed; no plan that names it is taken any more"
    )


def _say(lines: Iterable[str]) -> None:
    """A package's words in lines that a terminal does not break."""
    for line in lines:
        for part in folded(line):
            typer.echo(part)


def _approved(directory: Path, policy: Path | None) -> tuple[str, ...]:
    from privacy.contract.policy import load_policy

    path = policy or directory / "policy.toml"
    return load_policy(path).packages if path.is_file() else ()
