"""What a researcher runs: a whole federation in one process, through the shipped apps."""

from pathlib import Path

import client
import privacy
import server

for package in (client, privacy, server):
    place = Path(package.__file__ or "").resolve().parent
    if place.parent != Path(__file__).resolve().parent.parent:
        raise ImportError(
            f"{package.__name__}: {place} is another package of this name, not Tacit's; "
            "Tacit must be installed in an environment of its own"
        )
