"""What a coordinator runs: it asks, combines what the sites release, and remembers."""

from pathlib import Path

import privacy

for package in (privacy,):
    place = Path(package.__file__ or "").resolve().parent
    if place.parent != Path(__file__).resolve().parent.parent:
        raise ImportError(
            f"{package.__name__}: {place} is another package of this name, not Tacit's; "
            "Tacit must be installed in an environment of its own"
        )
