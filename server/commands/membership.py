"""`init`, `sign`, `sites`, `revoke`, `renew`: who belongs to the federation."""

import datetime
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from privacy.audit_trail import record, recorded
from privacy.identity.certificates import CERTIFICATE_DAYS, Certificate
from privacy.identity.keys import signing_public
from server.commands.options import HERE, Dir, Json, Reason
from server.registry import authority
from server.registry import sites as members
from server.registry.relays import check_not_relay
from server.registry.sites import Home, Member, MembersError, plain, spaced

Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="NAME_OR_IP[:PORT] it is reached at (repeatable)."),
]
Days = Annotated[
    float | None,
    typer.Option(min=0.001, max=3650, help="For how many days; else 397, or as before."),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("init")(init)
    app.command("sign")(sign)
    app.command("sites")(sites)
    app.command("revoke")(revoke)
    app.command("renew")(renew)


def init(host: Hosts = None, directory: Dir = HERE, as_json: Json = False) -> None:
    """Make the authority, the coordinator's certificate and its signing key; once."""
    is_new = members.create(directory, host or [], _now())
    home = Home(directory)
    facts = {
        "made": is_new,
        "hosts": home.hosts(),
        "authority": Certificate.read(home.ca.read_bytes()).fingerprint,
        "verify": signing_public(home.signing_key.read_bytes()),
    }
    if is_new:
        hosts = ", ".join(home.hosts())
        record(directory, "init", hosts, fingerprint=str(facts["authority"]))
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(
        f"{directory}: coordinator for {', '.join(home.hosts())}" + ("" if is_new else " (was)")
    )
    typer.echo(f"authority {facts['authority']}")
    typer.echo(f"verifying key {facts['verify']}")


def sign(
    requests: Annotated[list[Path], typer.Argument(metavar="NAME.csr...")],
    directory: Dir = HERE,
    expect: Annotated[
        list[str] | None, typer.Option(help="The fingerprint that the site told (repeatable).")
    ] = None,
    days: Days = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Strike off the key that the site has now.")
    ] = False,
    relay: Annotated[
        bool, typer.Option("--relay", help="Enrol relays, which pass on their own sites' sums.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Enrol sites: shows who asks with which key, writes NAME.bundle beside each request."""
    if relay:
        check_not_relay(Home(directory))
    wanted = [plain(one) for one in expect or []]
    if wanted and len(wanted) != len(requests):
        raise MembersError(f"--expect: expected one for each of {len(requests)} requests")
    rows = []
    for number, path in enumerate(requests):
        expected = wanted[number] if wanted else None
        wish, bundle = members.sign(
            directory,
            path,
            _now(),
            expect=expected,
            days=days or CERTIFICATE_DAYS,
            replace_key=replace,
            relay=relay,
        )
        compared = "fingerprint compared" if expected else "fingerprint not compared"
        compared += "; a relay" if relay else ""
        record(directory, "sign", wish.site, fingerprint=wish.fingerprint, reason=compared)
        rows.append({"site": wish.site, "fingerprint": wish.fingerprint, "bundle": str(bundle)})
        if not as_json:
            typer.echo(f"{wish.site}: key {spaced(wish.fingerprint)}")
            typer.echo(f"  compare it with the site by telephone, then send {bundle}")
    if as_json:
        typer.echo(json.dumps({"signed": rows}))


def sites(directory: Dir = HERE, as_json: Json = False) -> None:
    """The enrolled sites, their keys, and how long their certificates hold."""
    rows = [facts(one) for one in Home(directory).check().members().sites.values()]
    if as_json:
        typer.echo(json.dumps({"sites": rows}))
        return
    for one in rows:
        typer.echo(
            f"{one['site']:<20} {one['state']:<8} to {one['ends'][:10]}  {one['fingerprint']}"
            + ("  relay" if one["relay"] else "")
        )


def revoke(
    site: Annotated[str, typer.Argument(metavar="SITE")],
    directory: Dir = HERE,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Strike a site's key off for good: open connections end at once."""
    key = members.known(Home(directory).check(), site).fingerprint
    with recorded(directory, "revoke", site, fingerprint=key, reason=reason):
        member = members.revoke(directory, site, _now())
    typer.echo(json.dumps(facts(member)) if as_json else f"{site}: revoked {member.revoked}")


def renew(
    site: Annotated[list[str] | None, typer.Argument(metavar="[SITE...]")] = None,
    host: Hosts = None,
    directory: Dir = HERE,
    days: Days = None,
    out: Annotated[Path | None, typer.Option(help="Where bundles go; else the folder.")] = None,
) -> None:
    """New certificates for the same keys: of the sites named, or of the coordinator itself."""
    for name in site or []:
        members.known(Home(directory).check(), name)
        record(directory, "renew", name)
        bundle = members.renew(directory, name, _now(), out or directory, days=days)
        typer.echo(f"{name}: send {bundle}; there: tacit-client join")
    if not site or host:
        Home(directory).check()
        record(directory, "renew", "coordinator", reason=", ".join(host or []))
        certificate = authority.renew_server(directory, host or [], _now(), days=days)
        typer.echo(f"coordinator: valid to {certificate.ends:%Y-%m-%d}")


def facts(member: Member) -> dict[str, Any]:
    """What is known of a site."""
    age = member.certificate.age(_now())
    return {
        "site": member.name,
        "state": "revoked" if member.revoked else age,
        "ends": member.certificate.ends.isoformat(),
        "fingerprint": member.fingerprint,
        "revoked": member.revoked,
        "relay": member.relay,
    }


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
