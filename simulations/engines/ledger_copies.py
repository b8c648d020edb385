"""Simulated sites' ledgers on machines that share no files: what was added travels, both ways.

The run folder has the ledgers. A worker has copies in a folder of its own: with a request comes
what others have added since, and with the reply goes back what it has added itself.
"""

from collections.abc import Mapping
from pathlib import Path

from privacy.ledger.anchor import anchor_path
from privacy.ledger.ledger import log_path
from simulations.dataset import ledger_path

Sizes = Mapping[str, int]
Additions = dict[str, tuple[int, bytes]]
"""By file: at which byte, what."""


def sizes(folder: Path, site: str) -> dict[str, int]:
    """How long a site's ledger and its log are here; both only ever grow."""
    path = ledger_path(folder, site)
    files = {"ledger": path, "log": log_path(path)}
    return {name: file.stat().st_size if file.exists() else 0 for name, file in files.items()}


def additions(folder: Path, site: str, known: Sizes) -> Additions:
    """What follows so many bytes of a site's ledger and of its log, and its anchor, which is short.

    Nothing where the site has no ledger yet.
    """
    path = ledger_path(folder, site)
    if not path.exists():
        return {}
    found: Additions = {"anchor": (0, anchor_path(path).read_bytes())}
    for name, file in (("ledger", path), ("log", log_path(path))):
        start = known.get(name, 0)
        with file.open("rb") as content:
            content.seek(start)
            found[name] = (start, content.read())
    return found


def add(folder: Path, site: str, added: Additions) -> None:
    """Write what was added elsewhere."""
    path = ledger_path(folder, site)
    files = {"ledger": path, "log": log_path(path), "anchor": anchor_path(path)}
    path.parent.mkdir(exist_ok=True, parents=True)
    for name, (start, content) in added.items():
        with files[name].open("r+b" if files[name].exists() else "w+b") as file:
            file.seek(start)
            file.write(content)
            file.truncate()
