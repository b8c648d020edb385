"""`enroll`, `join`, `pause`, `leave`: a site's place in a federation."""

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands.options import HERE, Dir, Expect, Json, Reason
from privacy.audit_trail import record, recorded

if TYPE_CHECKING:
    from privacy.identity.certificates import Certificate


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("enroll")(enroll)
    app.command("join")(join)
    app.command("pause")(pause)
    app.command("leave")(leave)


def enroll(
    site: Annotated[str, typer.Option(help="This site's name in the federation.")],
    directory: Dir = HERE,
    new_keys: Annotated[
        bool, typer.Option("--new-keys", help="Other keys, in use once a bundle for them joins.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make this site's keys, which never leave it, and its request NAME.csr."""
    from client.agent.credentials import enroll as make

    path, key = make(directory, site, new_keys=new_keys)
    record(directory, "enroll", site, fingerprint=key, reason="new keys" if new_keys else "")
    if as_json:
        typer.echo(json.dumps({"site": site, "request": str(path), "fingerprint": key}))
        return
    typer.echo(f"{path}: send this to the coordinator. Its key, to compare by telephone:")
    typer.echo(" ".join(key[i : i + 4] for i in range(0, len(key), 4)))


def join(
    bundle: Annotated[Path, typer.Argument(help="NAME.bundle, as the coordinator sent it.")],
    directory: Dir = HERE,
    expect: Expect = None,
    as_json: Json = False,
) -> None:
    """Take in the coordinator's answer: our certificate, its authority, its address, its key."""
    from client.agent.credentials import Enrolled, authority

    certificate = take_in(directory, bundle, expect)
    site = Enrolled(directory)
    if as_json:
        facts = {"site": site.name, "hosts": site.hosts, "ends": certificate.ends.isoformat()}
        typer.echo(json.dumps(facts | {"authority": authority(directory)}))
        return
    typer.echo(f"{site.name}: joined; the coordinator is {' or '.join(site.hosts)}")
    typer.echo(f"its authority is {authority(directory)}; valid to {certificate.ends:%Y-%m-%d}")
    if expect is None:
        typer.echo("nobody has checked it: compare it with the coordinator by telephone (--expect)")


def take_in(directory: Path, bundle: Path, expect: str | None) -> "Certificate":
    """Take in a bundle, and say so in the audit log."""
    from client.agent.credentials import Enrolled, authority
    from client.agent.credentials import join as take

    certificate = take(directory, bundle, datetime.datetime.now(datetime.UTC), expect=expect)
    compared = "the authority was compared" if expect else "the authority was not compared"
    name = Enrolled(directory).name
    record(directory, "join", name, fingerprint=authority(directory), reason=compared)
    return certificate


def pause(
    directory: Dir = HERE,
    off: Annotated[bool, typer.Option("--off", help="Take part again.")] = False,
    reason: Reason = "",
) -> None:
    """Answer no round until `pause --off`; the client stays connected."""
    from client.agent.credentials import Enrolled

    site = Enrolled(directory)
    name = site.name
    with recorded(directory, "pause --off" if off else "pause", name, reason=reason):
        if off:
            site.paused.unlink(missing_ok=True)
        else:
            site.paused.touch(0o600)
    typer.echo(f"{name}: {'takes part' if off else 'paused'}")


def leave(directory: Dir = HERE, reason: Reason = "") -> None:
    """Give up the certificate; the running client stops. Ledgers, keys and models stay."""
    from client.agent.credentials import Enrolled

    site = Enrolled(directory)
    name = site.name
    with recorded(directory, "leave", name, reason=reason):
        site.certificate.unlink(missing_ok=True)
    typer.echo(f"{name}: left; ask the coordinator to revoke it (tacit-server revoke {name})")
