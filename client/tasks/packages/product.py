"""Whether the product in this process is still itself: what a package must not have changed."""

import importlib
import types
from functools import lru_cache
from typing import Final

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
    for (module, owner, name), code in _originals().items():
        holder = importlib.import_module(module)
        place = vars(getattr(holder, owner)) if owner else vars(holder)
        if _code(place.get(name)) is not code:
            return f"{module}.{owner + '.' if owner else ''}{name}"
    return ""


@lru_cache(maxsize=1)
def _originals() -> dict[tuple[str, str, str], types.CodeType]:
    codes = {}
    for module, owners in _GUARDED.items():
        loaded = importlib.import_module(module)
        for owner in ("", *owners):
            place = vars(getattr(loaded, owner)) if owner else vars(loaded)
            for name, value in place.items():
                code = _code(value)
                if code is not None:
                    codes[module, owner, name] = code
    return codes


def remember() -> None:
    """Take note of the product as it is now, before a package is loaded."""
    _originals()


def _code(value: object) -> types.CodeType | None:
    value = getattr(value, "__wrapped__", value)
    if isinstance(value, property):
        value = value.fget
    return value.__code__ if isinstance(value, types.FunctionType) else None
