"""The counter-signed heads of the sites' ledgers: the coordinator's memory against a rollback.

One file for each ledger of a site, only ever appended: each line is one entry of the ledger (its
leaf, and its event where this coordinator's own run caused it) or one counter-signature of a head.
A site's first ledger goes by the site's name, each further one by `SITE@LEDGER`. A run is paid from
one ledger at each site.
"""

import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from privacy.files import naming, write_atomic
from privacy.ledger.heads import GENESIS, Head, Proof, accept, payload
from server.registry.head_files import read_lines
from server.rounds.messages import Answer

_SYNCS: Final = 8
"""Files that are put on disk together."""


class HeadBook:
    """Reads and appends `<folder>/<site>.jsonl`, and a copy of a run's lines in the run folder."""

    def __init__(
        self,
        folder: Path,
        run: str,
        copy: Path,
        sign: Callable[[bytes], bytes],
        ledger_of: Callable[[str], str] = lambda site: "",
    ) -> None:
        self._ledger_of, self._names = ledger_of, dict[str, str]()
        self._folder, self._run, self._copy, self._sign = folder, run, copy, sign
        self._last: dict[str, dict[str, Any]] = {}
        self._written: set[Path] = set()
        self._used: dict[str, set[str]] = {}
        for place in (folder, copy):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)

    def last(self, site: str) -> Mapping[str, Any]:
        """The site's last counter-signed head: n, digest and signature; it is on disk by then."""
        self._load(site)
        self.flush()
        return self._last[site]

    def flush(self) -> None:
        """Put on disk what `accept` has written since: a round's heads together.

        Nobody is told of a head, and no round counts, before that.
        """
        if len(self._written) > 1:
            with ThreadPoolExecutor(_SYNCS) as pool:  # the file system commits them together
                list(pool.map(_sync, self._written))
        else:
            for path in self._written:
                _sync(path)
        self._written.clear()

    def lines(self, site: str) -> list[dict[str, Any]]:
        """Everything that was counter-signed of the ledger that this run follows."""
        self._load(site)
        return read_lines(self._folder / f"{self._names[site]}.jsonl")

    def check(self, answers: Iterable[Answer]) -> None:
        """HeadError unless `accept` would take them all, one after another; nothing is written."""
        last: dict[str, Head] = {}
        used: dict[str, set[str]] = {}
        for answer in answers:
            site = answer.site
            self._load(site)
            proof, record = Proof.from_dict(answer.proof), self._last[site]
            before = last.get(site, Head(record["n"], record["digest"]))
            spoken = used.setdefault(site, set(self._used[site]))
            last[site] = accept(before, proof, spoken)
            if proof.acknowledged and proof.base != before:
                spoken.add(proof.base.digest)

    def accept(self, site: str, number: int, answer: Answer) -> None:
        """Check the chain from the last head to the new one and counter-sign it, or HeadError.

        It is on disk after `flush`.
        """
        self._load(site)
        record = self._last[site]
        proof = Proof.from_dict(answer.proof)
        last = Head(record["n"], record["digest"])
        head = accept(last, proof, self._used[site])
        if proof.acknowledged and proof.base != last:
            self._used[site].add(proof.base.digest)
        if head == last:
            return
        signature = self._sign(payload(self._names[site], head)).hex()
        line = {
            "v": 1,
            "site": self._names[site],
            "run": self._run,
            "round": number,
            "base": proof.base.to_dict(),
            "leaves": list(proof.leaves),
            "events": [event.to_dict() for event in answer.events],
            "acknowledged": proof.acknowledged,
            **head.to_dict(),
            "signature": signature,
        }
        data = _line(line)
        for path in (self._folder / f"{self._names[site]}.jsonl", self._copy / f"{site}.jsonl"):
            _append(path, data)
            self._written.add(path)
        self._last[site] = _signed(self._names[site], {**line, "signature": signature})

    def _load(self, site: str) -> None:
        if site in self._last:
            return
        copy = self._copy / f"{site}.jsonl"
        begun = read_lines(copy)
        name = str(begun[0]["site"]) if begun else followed(site, self._ledger_of(site))
        self._names[site] = name
        signature = self._sign(payload(name, GENESIS)).hex()
        last = _signed(name, GENESIS.to_dict() | {"signature": signature})
        used: set[str] = set()
        lines = read_lines(self._folder / f"{name}.jsonl")
        mine = [one for one in lines if one["run"] == self._run]
        if mine and read_lines(copy) != mine:  # a kill came between the two
            write_atomic(copy, b"".join(_line(one) for one in mine))
        for line in lines:
            last = _signed(name, line)
            if line["acknowledged"]:
                used.add(line["base"]["digest"])
        self._last[site], self._used[site] = last, used


def followed(site: str, ledger: str) -> str:
    """The name under which one of a site's ledgers is followed."""
    return f"{site}@{ledger}" if ledger else site


def last_head(folder: Path, site: str, ledger: str = "") -> Mapping[str, Any] | None:
    """The last head that was counter-signed for a ledger, in any run; None before the first."""
    name = followed(site, ledger)
    lines = read_lines(folder / f"{name}.jsonl")
    return _signed(name, lines[-1]) if lines else None


def _signed(name: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """What a site is told of a head: where it stands, of which ledger, and the signature."""
    head = {key: line[key] for key in ("n", "digest", "signature")}
    _, at, ledger = name.partition("@")
    return head | {"ledger": ledger} if at else head


def _line(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line) + "\n").encode()


def _append(path: Path, data: bytes) -> None:
    """Write a line behind the last whole one: what a crash left of another is dropped."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with naming(path):
            end = os.fstat(descriptor).st_size
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                end = os.pread(descriptor, end, 0).rfind(b"\n") + 1
                os.ftruncate(descriptor, end)
            written = os.pwrite(descriptor, data, end)
            if written != len(data):
                os.ftruncate(descriptor, end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
