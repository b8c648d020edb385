"""The ServerApp of the app bundle: the coordinator under stock Flower, where `flwr run` starts it.

It plays the same plan into the same run folder as `tacit-server run`. What stock Flower takes away
of the protection is in docs/stock-flower.md.
"""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.commands.running import Stop, labelled, planned, play, resolved
from server.commands.view import View
from server.flower.grid import RegisteredGrid
from server.model_process import Child
from server.registry.sites import Home, MembersError
from server.service.queue import Queue
from server.service.status import exclusive

_SECONDS: Final = 120.0  # a process for every message takes its time

app = ServerApp()


class StockError(RuntimeError):
    """The run did not reach its end: Flower shows it as failed, with this one line."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Read `--run-config`, wait for the sites, train; a run that ends early raises StockError."""
    options = context.run_config
    home = Home(_folder(options)).check()
    source, overrides = _text(options, "plan"), shlex.split(_text(options, "set"))
    name, least = _text(options, "name") or None, _whole(options, "min-sites") or None
    data, timeout, resume = _data(options), _seconds(options), bool(options.get("resume"))
    if resume and name is None:
        raise MembersError("resume: expected a name beside it")
    draft = planned(home, source, overrides, least, name if resume else None)
    if draft.is_secure:
        raise StockError(
            'aggregation must not be "secure": stock Flower starts a new process for every '
            "message, and a party's keys are in memory alone (tacit-server run)"
        )
    label = labelled(name, draft)
    view = View(as_json=False)
    if timeout is not None:
        draft = replace(draft, operation=replace(draft.operation, round_timeout=timeout))
    view.log("stock_flower", bundle=Path(__file__).parents[2], protection="docs/stock-flower.md")

    def sites() -> dict[bytes, str]:
        return {m.certificate.public_pem: m.name for m in home.members().enrolled}

    known = RegisteredGrid(grid, sites, view.log)
    where = "stock flower"
    with exclusive(home.folder), Child(draft, data, home.tasks) as child:
        plan = draft if resume else resolved(draft, child)
        state = play(
            known,
            where,
            home,
            plan,
            label,
            view,
            child,
            resume,
            Stop(),
            answer_seconds=_SECONDS,
            hand_out=_SECONDS,
        )
    if state not in ("done", "stopped", "paused"):
        raise StockError(f"{state}: {Queue(home.folder).find(label).detail}")


def _folder(options: Mapping[str, object]) -> Path:
    folder = Path(_text(options, "dir"))
    if not folder.is_absolute():  # the SuperLink's working directory is not the caller's
        raise MembersError(
            "dir: expected the absolute path of a coordinator's folder "
            f"(flwr run --run-config 'dir=\"/PATH\"'), got {str(folder)!r:.80}"
        )
    return folder


def _data(options: Mapping[str, object]) -> Path | None:
    text = _text(options, "data")
    if not text:
        return None
    if not Path(text).is_absolute() or not Path(text).exists():
        raise MembersError(f"data: expected the absolute path of public rows, got {text!r:.80}")
    return Path(text)


def _text(options: Mapping[str, object], key: str) -> str:
    value = options.get(key, "")
    if not isinstance(value, str):
        raise MembersError(f"{key}: expected a text in quotes, got {value!r:.80}")
    return value


def _whole(options: Mapping[str, object], key: str) -> int:
    value = options.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MembersError(f"{key}: expected a whole number, got {value!r:.80}")
    return value


def _seconds(options: Mapping[str, object]) -> float | None:
    """How long a round may last; 0 is as long as it takes."""
    value = options.get("round-timeout", 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise MembersError(f"round-timeout: expected seconds, got {value!r:.80}")
    return float(value) or None
