"""The results of a run of statistics as one value: written by the coordinator, read by anybody.

`statistics.json` holds the noisy sums themselves and all that is needed to compute from them again;
the figures in it are a function of these, and are never read back.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json
from privacy.files import DocumentError, Limits, canonical_json, parse_json, read_bounded
from privacy.statistics.columns import Column, Floats, StatisticsError, from_dict, to_dict
from privacy.statistics.design import Design, design
from privacy.statistics.differences import LEVEL, difference
from privacy.statistics.fairness import fairness
from privacy.statistics.figures import by_column, figures, order_of
from privacy.statistics.release import standard_deviation

NAME: Final = "statistics.json"
FORMAT: Final = 1
_LIMITS: Final = Limits(size=2**28, depth=16, digits=400, length=2**24, count=2**24)


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """One site's noisy sums [size], over the bound as they came, and its noise multiplier."""

    sums: Floats
    sigma: float


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """A run's results: its plan, the columns' public descriptions, and what each site released."""

    run: str
    plan: Plan
    columns: tuple[Column, ...]
    sites: Mapping[str, Release]
    insecure: bool = False

    @property
    def design(self) -> Design:
        """What the numbers of a release are."""
        if self.plan.statistics is None:
            raise StatisticsError("plan: must be one of statistics")
        return design(self.plan.statistics, self.columns)

    def released(self) -> dict[str, tuple[Floats, float]]:
        """Each site's noisy sums in records, and the standard deviation of their noise."""
        of = self.design
        return {
            name: (one.sums * of.bound, standard_deviation(of, one.sigma))
            for name, one in sorted(self.sites.items())
        }

    def content(self) -> dict[str, Any]:
        """All of `statistics.json`."""
        of, released = self.design, self.released()
        total = np.sum([sums for sums, _ in released.values()], 0)
        noise = math.sqrt(sum(std**2 for _, std in released.values()))
        return {
            "format": FORMAT,
            "what": "tacit statistics",
            "run": self.run,
            "plan": self.plan.to_json(),
            "digest": self.plan.digest,
            "insecure": self.insecure,
            "of": self.plan.reads,
            "unit": self.plan.unit,
            "epsilon": self.plan.epsilon,
            "delta": self.plan.required_delta,
            "bound": of.bound,
            "numbers": of.size,
            "columns": [to_dict(one) for one in self.columns],
            "releases": {
                name: {"sigma": one.sigma, "sums": [float(v) for v in one.sums]}
                for name, one in sorted(self.sites.items())
            },
            "noise": {name: std for name, (_, std) in sorted(released.items())},
            "all": figures(of, total, noise),
            "fairness": fairness(of, total, noise),
            "sites": {n: figures(of, *pair) for n, pair in sorted(released.items())},
            "differences": differences(of, released),
        }

    def fairness_json(self) -> str:
        """The groups' rates of all sites together: what a report shows, without a site's name."""
        content = self.content()
        keys = ("unit", "epsilon", "delta", "of", "fairness")
        return canonical_json({key: content[key] for key in keys}) + "\n"

    def to_json(self) -> str:
        """The canonical text."""
        return canonical_json(self.content()) + "\n"


def differences(of: Design, released: Mapping[str, tuple[Floats, float]]) -> list[dict[str, Any]]:
    """Whether the sites differ, column by column."""
    differing = []
    for index, by_site in by_column(of, released).items():
        order = order_of(of, index, next(iter(by_site.values())))
        one = difference(of.columns[index].name, by_site, order)
        if one is not None:
            facts = {"column": one.column, "p": one.p, "differ": one.differ, "level": LEVEL}
            differing.append(facts | {"sites": list(one.sites)})
    return differing


def read_results(path: Path) -> Results:
    """The results of a run folder or of a file; StatisticsError for anything else."""
    file = path / NAME if path.is_dir() else path
    try:
        value = parse_json(read_bounded(file, _LIMITS.size), _LIMITS)
    except (DocumentError, OSError) as error:
        raise StatisticsError(f"{file}: must be the results of statistics ({error})") from None
    try:
        return _results(value)
    except (KeyError, TypeError, ValueError, AttributeError, PlanError) as error:
        text = str(error) if isinstance(error, PlanError | StatisticsError) else "a key is wrong"
        raise StatisticsError(f"{file}: must be the results of statistics ({text})") from None


def _results(value: Any) -> Results:
    if value["format"] != FORMAT or value["what"] != "tacit statistics":
        raise StatisticsError(f"format must be {FORMAT}")
    plan = from_json(value["plan"])
    sites = {
        str(name): Release(np.array(one["sums"], dtype=np.float64), float(one["sigma"]))
        for name, one in value["releases"].items()
    }
    columns = tuple(from_dict(one) for one in value["columns"])
    results = Results(str(value["run"]), plan, columns, sites, bool(value["insecure"]))
    size = results.design.size
    for name, one in sites.items():
        if one.sums.shape != (size,) or not np.isfinite(one.sums).all() or not one.sigma > 0:
            raise StatisticsError(f"releases.{name} must hold {size} finite numbers and a sigma")
    return results


def digest_of(path: Path) -> str:
    """SHA-256 of a file of results: by it a later plan says where its constants come from."""
    file = path / NAME if path.is_dir() else path
    return hashlib.sha256(read_bounded(file, _LIMITS.size)).hexdigest()
