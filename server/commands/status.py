"""`status`: the coordinator, its sites and its runs, as they are now."""

import json
import time
from typing import Any, Final

import typer

from server.commands.membership import facts
from server.commands.options import HERE, Dir, Json
from server.commands.queue import described
from server.registry.head_files import beyond
from server.registry.sites import Home

_SHOWN: Final = 50
"""Sites behind relays that are listed one by one."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(directory: Dir = HERE, as_json: Json = False) -> None:
    """The coordinator (running, stopped or killed), the sites, and the runs."""
    from server.service.status import read

    home = Home(directory).check()
    now = read(home.folder)
    alive = now["state"] == "running"
    sites = []
    for member in home.members().sites.values():
        seen = now.get("sites", {}).get(member.name, {})
        connected = alive and bool(seen.get("connected"))
        sites.append(
            facts(member) | {"connected": connected, "seen": seen.get("seen") if alive else None}
        )
    runs = described(home)
    relayed = beyond(home.folder / "heads", home.members().sites)
    report = {"hosts": home.hosts(), "now": now, "sites": sites, "runs": runs, "relayed": relayed}
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(f"coordinator for {', '.join(home.hosts())}: {_state(now)}")
    for one in sites:
        seen = "" if one["seen"] is None else f"seen {one['seen']:.0f} s ago"
        here = "connected" if one["connected"] else ("away" if alive else "")
        typer.echo(f"  {one['site']:<20} {one['state']:<8} {here:<10} {seen}".rstrip())
    for far in relayed[:_SHOWN]:
        last = f"round {far['round']} of run {far['run']}, {far['entries']} entries"
        typer.echo(f"  {far['site']:<20} behind a relay; last seen in {last}")
    if relayed[_SHOWN:]:
        typer.echo(f"  and {len(relayed) - _SHOWN} more behind relays (--json lists them)")
    for each in runs:
        rounds = f"{each['rounds']} of {each['planned']} rounds"
        detail = f"  {each['detail']}" if each["detail"] else ""
        typer.echo(f"  run {each['run']}: {each['state']}, {rounds}{detail}")


def _state(now: dict[str, Any]) -> str:
    state = str(now["state"])
    if state == "running":
        run = now.get("run")
        doing = "no run is due"
        if run is not None:
            doing = f"run {run}, round {now.get('round', 0)} of {now.get('planned')} done"
            if now.get("waiting"):
                doing += f", waiting: {now['waiting']}"
        return f"running at {now.get('listen')} (pid {now.get('pid')}); {doing}"
    if state == "stopped":
        stopped = now["stopped"]
        run = stopped.get("run")
        more = f"; run {run} goes on at the next start" if run else ""
        return f"stopped at {_clock(stopped['time'])} by {stopped['by']}{more}"
    if state == "killed":
        run = now.get("run")
        more = f"; run {run} goes on at the next start" if run else ""
        return f"not running; last seen at {_clock(now.get('time', 0.0))}{more}"
    return state


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
