"""The files of counter-signed heads, to be looked at: whole, or the last line alone."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from privacy.ledger.heads import HeadError

_TAIL: Final = 1 << 13
"""Bytes at the end of a file that are read for its last line, at first."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A site's lines; an incomplete last one, which nobody was told of, does not count."""
    if not path.exists():
        return []
    return _read(path, path.read_bytes().split(b"\n")[:-1])


def _read(path: Path, lines: Iterable[bytes]) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in lines]
    except ValueError:
        raise HeadError(f"{path}: expected a JSON object a line") from None


def beyond(folder: Path, enrolled: Iterable[str]) -> list[dict[str, Any]]:
    """Sites that have heads here and are not enrolled here: those behind relays.

    Of each the last counter-signed head: its run, its round, and how many entries its ledger has.
    """
    direct, found = set(enrolled), dict[str, dict[str, Any]]()
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
        site, _, ledger = path.stem.partition("@")
        lines = _tail(path).splitlines()
        if site in direct or not lines:
            continue
        last = _read(path, lines[-1:])[0]
        facts = {"site": site, "run": last["run"], "round": last["round"], "entries": last["n"]}
        found[site] = facts if not ledger or site not in found else found[site]
    return list(found.values())


def _tail(path: Path) -> bytes:
    """The last whole lines of a file, without reading what is before them unless one is long."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        reach = _TAIL
        while True:
            file.seek(max(0, size - reach))
            content = file.read(reach)
            whole = content[: content.rfind(b"\n") + 1]
            if reach >= size or b"\n" in whole[:-1]:
                return whole
            reach *= 4
