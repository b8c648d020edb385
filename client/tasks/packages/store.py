"""A site's own store of task packages: `DIR/tasks/<sha256>.tacit-task`, each by its own digest.

Whatever the way on which a package came, it is bytes to read until the owner approves its digest in
the policy. It is loaded from here alone, by bytes whose digest was just checked. What came with a
coordinator's proposal lies in `DIR/shown-tasks` instead, and only its approval brings it here.
"""

import re
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.tasks.packages.package_task import package_task
from client.tasks.registry import fitting, task_of
from client.tasks.rows import TaskError
from client.tasks.task import Task
from privacy.contract.plan import Plan
from privacy.files import canonical_json, write_atomic
from privacy.task_package.archive import SUFFIX, Package, PackageError, read_package

PREFIX: Final = "sha256:"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SHORTEST: Final = 6
SHOWN_MAX: Final = 20
"""How many packages that came with proposals are kept: a coordinator could fill the disk."""


def folder(directory: Path) -> Path:
    """Where a site's packages lie."""
    return directory / "tasks"


def add(directory: Path, package: Package) -> Path:
    """Keep a package; the same one again changes nothing. Nothing of it is run."""
    path = folder(directory) / f"{package.digest}{SUFFIX}"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != package.content:
        write_atomic(path, package.content, mode=0o600)
    return path


def shown_folder(directory: Path) -> Path:
    """Where packages lie that came with proposals."""
    return directory / "shown-tasks"


def keep_shown(directory: Path, package: Package) -> bool:
    """Keep a package that a coordinator showed, for the owner to read; False if it is here.

    Of those only the last `SHOWN_MAX` are kept, each as small as a message allows.
    """
    path = shown_folder(directory) / f"{package.digest}{SUFFIX}"
    if path.exists() or package.digest in _digests(folder(directory)):
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, package.content, mode=0o600)
    for digest in _digests(path.parent)[:-SHOWN_MAX]:
        (path.parent / f"{digest}{SUFFIX}").unlink(missing_ok=True)
    return True


def take_shown(directory: Path, package: Package) -> None:
    """An approved package moves from what was shown into the store."""
    add(directory, package)
    (shown_folder(directory) / f"{package.digest}{SUFFIX}").unlink(missing_ok=True)


def remove(directory: Path, digest: str) -> None:
    """Forget a package's bytes."""
    for place in (folder(directory), shown_folder(directory)):
        (place / f"{digest}{SUFFIX}").unlink(missing_ok=True)


def known(directory: Path) -> tuple[str, ...]:
    """The digests of the packages that can be read here, shown ones first, the latest last."""
    return tuple(dict.fromkeys([*_digests(shown_folder(directory)), *_digests(folder(directory))]))


def is_shown(directory: Path, digest: str) -> bool:
    """Whether a package only came with a proposal, and is not in the store."""
    return digest not in _digests(folder(directory))


def _digests(place: Path) -> list[str]:
    paths = [p for p in place.glob(f"*{SUFFIX}") if _DIGEST.fullmatch(p.stem)]
    return [p.stem for p in sorted(paths, key=lambda p: (p.stat().st_mtime_ns, p.stem))]


def find(directory: Path, text: str) -> str:
    """The whole digest that `text` begins, of the packages here; PackageError."""
    text = text.removeprefix(PREFIX)
    matches = [digest for digest in known(directory) if digest.startswith(text)]
    if len(text) < _SHORTEST or len(matches) != 1:
        raise PackageError(
            f"{text[:64]!r} must be the hash of a package here, or at least its first {_SHORTEST} "
            f"digits ({len(matches)} packages begin so)"
        )
    return matches[0]


def readable(directory: Path, digest: str) -> Package:
    """The package of a digest, wherever it lies here, to be read by people; PackageError."""
    shown = shown_folder(directory) / f"{digest}{SUFFIX}"
    return _checked(shown, digest) if shown.is_file() else read(directory, digest)


def read(directory: Path, digest: str) -> Package:
    """The package of a digest, if these are its bytes; PackageError."""
    path = folder(directory) / f"{digest}{SUFFIX}"
    if not path.is_file():
        raise PackageError(f"{digest[:16]}: must be added first (tacit-client task add FILE)")
    return _checked(path, digest)


def _checked(path: Path, digest: str) -> Package:
    package = read_package(path)
    if package.digest != digest:
        raise PackageError(f"{path}: must be the package of its name, it holds other bytes")
    return package


@dataclass(slots=True)
class Packages:
    """The tasks that a site may train: shipped ones, and packages of its store that it approved.

    `approved()` are the codes that the policy lists now.
    """

    directory: Path
    approved: Callable[[], Collection[str]]
    _loaded: dict[tuple[str, str, str], Task] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, plan: Plan) -> Task:
        """The task of a plan; TaskError where its package is not approved, or not those bytes."""
        if plan.code is None:
            return task_of(plan)
        if plan.code not in self.approved():
            raise TaskError(f"{plan.code}: must be approved first (tacit-client task approve)")
        try:
            package = read(self.directory, plan.code.removeprefix(PREFIX))
        except PackageError as error:
            raise TaskError(str(error)) from None
        key = (plan.code, plan.task, canonical_json(dict(plan.task_options)))
        with self._lock:
            if key not in self._loaded:
                self._loaded.clear()  # one at a time in memory
                self._loaded[key] = package_task(package, plan.task_options, name=plan.task)
            return fitting(self._loaded[key], plan)

    def usual(self) -> list[Task]:
        """The tasks of the approved packages that are here, under their default options."""
        tasks = []
        for code in self.approved():
            with suppress(PackageError, TaskError):
                tasks.append(package_task(read(self.directory, code.removeprefix(PREFIX)), {}))
        return tasks
