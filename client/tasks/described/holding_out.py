"""Which rows belong together when some are held out: by what each row is, never by its place."""

import hashlib
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from client.dpsgd.trees import tensors
from client.tasks.rows import Rows


def number_of(content: bytes) -> int:
    """A number from a text or a row alone: the same in every file."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)


def units(rows: Rows) -> NDArray[np.uint64]:
    """What is held out together [n]: a subject, else a row by its content, equal ones one by one.

    Rows of the same content are told apart by their order among themselves alone, so that one of
    them less is the last of them less.
    """
    if rows.subject is not None:
        return rows.subject.numpy().view(np.uint64)
    arrays = [t.numpy() for t in (*tensors(rows.x), rows.y)]
    sites = rows.site if rows.site is not None else ("",) * len(rows)
    seen: Counter[bytes] = Counter()
    numbers = np.empty(len(rows), np.int64)
    for i, site in enumerate(sites):
        content = b"".join(np.ascontiguousarray(a[i]).tobytes() for a in arrays) + site.encode()
        row = hashlib.sha256(content).digest()
        numbers[i] = number_of(row + seen[row].to_bytes(8, "little"))
        seen[row] += 1
    return numbers.view(np.uint64)
