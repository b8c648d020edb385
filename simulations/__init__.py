"""Researchers' door: `simulate` a whole federation in one process, `sweep` over plans.

>>> from simulations import Plan, simulate  # doctest: +SKIP
>>> result = simulate(plan, task=nn.Linear(8, 2), data=(x, y))  # doctest: +SKIP
>>> result.epsilon, result.metrics, result.model, result.plot()  # doctest: +SKIP
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import client
import privacy
import server

if TYPE_CHECKING:
    from client.dpsgd.fused.twins import private_twins
    from privacy.contract.plan import Operation, Plan, Simulation, SitePlan
    from privacy.contract.plan_file import load_plan
    from simulations.comparison import Comparison, compare
    from simulations.engines.errors import OwnCodeError
    from simulations.own_task import OwnData
    from simulations.parameter_sweep import Sweep, sweep
    from simulations.result import History, Result
    from simulations.run import simulate

__all__ = [
    "Comparison",
    "History",
    "Operation",
    "OwnCodeError",
    "OwnData",
    "Plan",
    "Result",
    "Simulation",
    "SitePlan",
    "Sweep",
    "compare",
    "load_plan",
    "private_twins",
    "simulate",
    "sweep",
]

for package in (client, privacy, server):
    place = Path(package.__file__ or "").resolve().parent
    if place.parent != Path(__file__).resolve().parent.parent:
        raise ImportError(
            f"{package.__name__}: {place} is another package of this name, not Tacit's; "
            "Tacit must be installed in an environment of its own"
        )

_HOMES: Final = {
    "Comparison": "simulations.comparison",
    "compare": "simulations.comparison",
    "History": "simulations.result",
    "Operation": "privacy.contract.plan",
    "OwnCodeError": "simulations.engines.errors",
    "OwnData": "simulations.own_task",
    "Plan": "privacy.contract.plan",
    "Result": "simulations.result",
    "Simulation": "privacy.contract.plan",
    "SitePlan": "privacy.contract.plan",
    "Sweep": "simulations.parameter_sweep",
    "load_plan": "privacy.contract.plan_file",
    "private_twins": "client.dpsgd.fused.twins",
    "simulate": "simulations.run",
    "sweep": "simulations.parameter_sweep",
}


def __getattr__(name: str) -> Any:
    """Load what is asked for: torch and Flower take seconds, and `--help` needs neither."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from privacy.runtime import prepare

    prepare()  # Flower and Ray call nowhere; that is all that this door changes
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
