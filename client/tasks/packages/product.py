"""Whether the product in this process is still itself: what a package must not have changed."""

import importlib
import sys
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

_GUARDED: Final = {
    "privacy.mechanism.noise": (),
    "privacy.mechanism.sensitivity": (),
    "privacy.ledger.ledger": ("Ledger",),
    "privacy.contract.decision": (),
    "client.dpsgd.clipped_sum": ("BatchSum", "Outer", "Lookup"),
    "client.dpsgd.clipping": ("BookKeeping",),
    "client.dpsgd.training": ("NoisyOptimizer",),
    "client.release": (),
}
"""The modules on the way from a gradient to a reply, with the classes in them."""


def product_changed() -> str:
    """The name of the first guarded function that is another than at its import; "" if none.

    It catches a package that patches what it runs beside by mistake or openly. Code in the same
    process that means to deceive could patch this check as well: hence the approval.
    """
    for what, place, name, value, code in _originals():
        now = place.get(name)
        if now is not value or (code is not None and _code(now) is not code):
            return what
    return ""


@lru_cache(maxsize=1)
def _originals() -> tuple[tuple[str, Mapping[str, Any], str, object, types.CodeType | None], ...]:
    """What is guarded: how it is called, where it stands, and what stood there at first."""
    guarded: list[tuple[str, Mapping[str, Any], str, object, types.CodeType | None]] = []
    for module, owners in _GUARDED.items():
        loaded = importlib.import_module(module)
        guarded.append((module, sys.modules, module, loaded, None))
        for owner in owners:
            guarded.append((f"{module}.{owner}", vars(loaded), owner, vars(loaded)[owner], None))
        for owner in ("", *owners):
            place = vars(vars(loaded)[owner]) if owner else vars(loaded)
            for name, value in place.items():
                code = _code(value)
                if code is not None:
                    what = f"{module}.{owner + '.' if owner else ''}{name}"
                    guarded.append((what, place, name, value, code))
    return tuple(guarded)


def remember() -> None:
    """Take note of the product as it is now, before a package is loaded."""
    _originals()


def _code(value: object) -> types.CodeType | None:
    value = getattr(value, "__wrapped__", value)
    if isinstance(value, property):
        value = value.fget
    return value.__code__ if isinstance(value, types.FunctionType) else None
