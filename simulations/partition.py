"""Who holds which rows in a simulated federation: pure partitioners, seeded by value."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class SplitError(ValueError):
    """A split that does not exist, or that these rows do not allow."""


def split(
    spec: str,
    labels: NDArray[np.generic],
    natural: Sequence[str] | None,
    sites: int,
    seed: int,
    subject: NDArray[np.int64] | None = None,
) -> dict[str, Indices]:
    """Give every row to exactly one site; the same arguments give the same split.

    * `iid`: equal shares of a permutation;
    * `dirichlet:A`: every class is shared out by a draw from Dirichlet(A, .., A);
    * `labels:K`: every site holds K classes, and a class is shared equally by who holds it;
    * `natural`: by the rows' own sites (`natural`), under their own names.

    With `subject`, a person number for each row, no person is at two sites: `iid` gives equal
    shares of the people, `natural` refuses people that two sites hold, the others are refused.
    """
    kind, _, argument = spec.partition(":")
    if kind == "natural" and not argument:
        parts_of = _natural(natural, sites)
        return parts_of if subject is None else _apart(parts_of, subject)
    if subject is not None:
        return _people(spec, subject, sites, seed)
    if not 1 <= sites <= len(labels):
        raise SplitError(f"sites must be >= 1 and <= {len(labels)} (the rows), got {sites}")
    draw = np.random.default_rng(seed)
    if kind == "iid" and not argument:
        parts = np.array_split(draw.permutation(len(labels)), sites)
    elif kind == "dirichlet":
        parts = _dirichlet(_classes(spec, labels), _concentration(spec, argument), sites, draw)
    elif kind == "labels":
        parts = _labels(_classes(spec, labels), _count(spec, argument), sites, draw)
    else:
        raise SplitError(f"split must be iid, dirichlet:ALPHA, labels:K or natural, got {spec!r}")
    return {f"site-{i}": np.sort(part).astype(np.int64) for i, part in enumerate(parts)}


def _people(spec: str, subject: NDArray[np.int64], sites: int, seed: int) -> dict[str, Indices]:
    if spec != "iid":
        raise SplitError(f'split: expected iid or natural where unit = "subject", got {spec!r}')
    people, person = np.unique(subject, return_inverse=True)
    if not 1 <= sites <= len(people):
        raise SplitError(f"sites: expected 1 <= sites <= {len(people)} (people), got {sites}")
    order = np.random.default_rng(seed).permutation(len(people))
    shares = np.array_split(order, sites)
    holder = np.empty(len(people), dtype=np.int64)
    for i, share in enumerate(shares):
        holder[share] = i
    return {f"site-{i}": np.flatnonzero(holder[person] == i).astype(np.int64) for i in range(sites)}


def _apart(parts: dict[str, Indices], subject: NDArray[np.int64]) -> dict[str, Indices]:
    held = np.concatenate([np.unique(subject[rows]) for rows in parts.values()])
    twice = len(held) - len(np.unique(held))
    if twice:
        raise SplitError(f"split: expected every person at one site, got {twice} at several")
    return parts


def _natural(natural: Sequence[str] | None, sites: int) -> dict[str, Indices]:
    if natural is None:
        raise SplitError("split must not be natural, since the task's rows have no natural sites")
    names = sorted(set(natural))
    if sites != len(names):
        raise SplitError(f"sites must be {len(names)} ({', '.join(names)}), got {sites}")
    labels = np.asarray(natural)
    return {name: np.flatnonzero(labels == name).astype(np.int64) for name in names}


def _classes(spec: str, labels: NDArray[np.generic]) -> list[Indices]:
    """The rows of each class."""
    if labels.dtype.kind == "f" or labels.ndim > 1:
        raise SplitError(f"split must be iid or natural unless labels are classes, got {spec!r}")
    return [np.flatnonzero(labels == value) for value in np.unique(labels)]


def _dirichlet(
    classes: list[Indices], alpha: float, sites: int, draw: np.random.Generator
) -> list[Indices]:
    shares: list[list[Indices]] = [[] for _ in range(sites)]
    for rows in classes:
        cuts = np.cumsum(draw.dirichlet(np.full(sites, alpha)))[:-1]
        parts = np.split(draw.permutation(rows), np.rint(cuts * len(rows)).astype(int))
        for share, part in zip(shares, parts, strict=True):
            share.append(part)
    parts = [np.concatenate(share) for share in shares]
    for i in range(sites):  # a site without rows is no site: the largest gives it one
        if not len(parts[i]):
            largest = max(range(sites), key=lambda k: len(parts[k]))
            parts[i], parts[largest] = parts[largest][:1], parts[largest][1:]
    return parts


def _labels(
    classes: list[Indices], count: int, sites: int, draw: np.random.Generator
) -> list[Indices]:
    if count > len(classes) or count * sites < len(classes):
        least = -(-len(classes) // sites)
        raise SplitError(
            f"split must be labels:K with {least} <= K <= {len(classes)} "
            f"({len(classes)} classes, {sites} sites), got labels:{count}"
        )
    order = draw.permutation(len(classes))
    holds = [order[(i * count + np.arange(count)) % len(classes)] for i in range(sites)]
    shares: list[list[Indices]] = [[] for _ in range(sites)]
    for label, rows in enumerate(classes):
        holders = [i for i in range(sites) if label in holds[i]]
        parts = np.array_split(draw.permutation(rows), len(holders))
        for i, part in zip(holders, parts, strict=True):
            shares[i].append(part)
    return [np.concatenate(share) for share in shares]


def _concentration(spec: str, argument: str) -> float:
    try:
        alpha = float(argument)
    except ValueError:
        alpha = 0.0
    if not 1e-3 <= alpha <= 1e6:
        raise SplitError(f"split must be dirichlet:ALPHA with ALPHA >= 0.001, got {spec!r}")
    return alpha


def _count(spec: str, argument: str) -> int:
    if not argument.isdecimal() or int(argument) < 1:
        raise SplitError(f"split must be labels:K with an integer K >= 1, got {spec!r}")
    return int(argument)
