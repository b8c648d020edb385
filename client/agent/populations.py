"""The people in a site's data: each population has one name, given once, and one ledger for life.

`DIR/populations.json` says where the ledgers are. Contents may change, files may move, the client
may be installed again: the name and the ledger stay, and the ledger's log says what changed.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from privacy.contract.plan_file import schema_digest
from privacy.contract.policy import Policy
from privacy.files import read_json, write_atomic
from privacy.ledger.ledger import Ledger, LedgerError

FILE: Final = "populations.json"
CACHE: Final = "cache"
"""The folder of the encoded copies of rows (`client.data.cache`)."""
_NOTHING: Final = hashlib.sha256().hexdigest()
"""The fingerprint of an empty file, or of a folder without files."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class PopulationError(ValueError):
    """No population, or not one of that name: one line for the operator."""


@dataclass(frozen=True, slots=True)
class Population:
    """A name and its ledger; `data` is where its rows lay when it was added, if that was said.

    `schema` is the digest of the schema that the owner registered with the data: a copy of it lies
    in `DIR/schemas/`. `tasks` are those that may be trained on these people; none named: any. `id`
    tells a coordinator which of a site's ledgers it follows: random, and "" for the first.
    `separate` names the populations of which the owner said that these are other people, though
    the rows lie in the same place or have the same contents.
    """

    name: str
    ledger: str
    data: str | None = None
    schema: str | None = None
    tasks: tuple[str, ...] = ()
    id: str = ""
    separate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "separate", tuple(self.separate))


def add(
    directory: Path,
    name: str,
    ledger: Path,
    data: Path | None = None,
    schema: str | None = None,
    tasks: Sequence[str] = (),
    *,
    separate: bool = False,
) -> tuple[Ledger, bool]:
    """Register a population with its ledger, made new or found; True where it was found.

    `schema` is the text of the data's own schema: from then on no plan with another one is taken.
    `tasks` are the only ones that these people take part in; none: any. Rows that are another
    population's are refused, unless the owner says that these are `separate` people.
    """
    if not _NAME.fullmatch(name):
        raise PopulationError(f"{name!r}: expected letters, digits, '_', '-' and '.' as a name")
    if data is not None and not data.exists():
        raise PopulationError(f"--data {data}: expected a file or folder, found none")
    path = ledger.absolute()
    populations = {one.name: one for one in known(directory)}
    if name in populations and Path(populations[name].ledger) != path:
        raise PopulationError(
            f"{name}: is there already, with the ledger {populations[name].ledger}"
        )
    others = tuple(sorted(populations.keys() - {name})) if separate else ()
    before = populations.get(name)
    apart = tuple(sorted({*others, *(before.separate if before is not None else ())}))
    contents = None if data is None else fingerprint(data)
    if data is not None and contents is not None:
        check_separate(directory, name, data, contents, apart)
    exists = path.exists() or path.with_name(path.name + ".log").exists()
    if exists:
        opened = Ledger.open(path)
        if opened.population != name:
            raise PopulationError(f"{path}: is the ledger of {opened.population!r}, not of {name}")
    else:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = Ledger.create(path, population=name)
    digest = populations[name].schema if name in populations else None
    if schema is not None:
        digest = schema_digest(schema)
        copy = directory / "schemas" / f"{name}.toml"
        copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(copy, schema.encode())
        log_schema(opened, digest)
    where = None if data is None else str(data.absolute())
    if before is not None:
        where, tasks = where or before.data, tasks or before.tasks
        number = before.id
    else:
        number = secrets.token_hex(8) if populations else ""
    populations[name] = Population(name, str(path), where, digest, tuple(tasks), number, apart)
    _write(directory, populations.values())
    if contents is not None:
        log_contents(opened, contents)
    return opened, exists


def move(
    directory: Path, name: str, *, data: Path | None = None, ledger: Path | None = None
) -> Population:
    """Say where a population's rows or its ledger lie by now; PopulationError where they do not.

    The ledger there must be this population's, and sound.
    """
    populations = {one.name: one for one in known(directory)}
    if name not in populations:
        raise PopulationError(
            f"expected one of the populations {', '.join(populations) or 'none'}, got {name}"
        )
    if data is not None and not data.exists():
        raise PopulationError(f"--data {data}: expected a file or folder, found none")
    one = populations[name]
    if ledger is not None:
        one = replace(one, ledger=str(ledger.absolute()))
        if not open_ledger(one).trusted():
            raise PopulationError(
                f"{ledger}: an older copy, or its log and anchor were left behind: move all files"
            )
    if data is not None:
        check_separate(directory, name, data, fingerprint(data), one.separate)
        one = replace(one, data=str(data.absolute()))
    populations[name] = one
    _write(directory, populations.values())
    return one


def check_separate(
    directory: Path, name: str, data: Path, digest: str, separate: Sequence[str]
) -> None:
    """Refuse rows that are another population's: its people would have a second budget.

    They are where the same file or folder is named, one within the other, or where the contents are
    those that another ledger's log has noted at any time.
    """
    here = data.resolve()
    for other in known(directory):
        if other.name == name or other.name in separate or name in other.separate:
            continue
        there = None if other.data is None else Path(other.data).resolve()
        same = there is not None and (here.is_relative_to(there) or there.is_relative_to(here))
        if same or digest in _noted(other):
            raise PopulationError(
                f"--data {data}: these are the rows of {other.name}, who have the ledger "
                f"{other.ledger}; expected that name, or --separate-people if they are other people"
            )


def _noted(population: Population) -> set[str]:
    """The contents that a population's data ever had; none where its ledger cannot be read."""
    try:
        notes = Ledger.open(Path(population.ledger)).notes()
    except LedgerError:
        return set()
    digests = {note.details.get("sha256") for note in notes if note.what == "contents"}
    return {one for one in digests if isinstance(one, str) and one != _NOTHING}


def tell_apart(directory: Path) -> None:
    """Give every population but the first its own id: lists of 0.1.0 have none."""
    populations = known(directory)
    if any(not one.id for one in populations[1:]):
        named = [
            one if one.id else replace(one, id=secrets.token_hex(8)) for one in populations[1:]
        ]
        _write(directory, [*populations[:1], *named])


def _write(directory: Path, populations: Iterable[Population]) -> None:
    text = json.dumps([asdict(one) for one in populations], indent=1) + "\n"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(directory / FILE, text.encode())


def known(directory: Path) -> tuple[Population, ...]:
    """The populations of a site, in the order in which they were added."""
    path = directory / FILE
    if not path.is_file():
        return ()
    try:
        return tuple(_population(one) for one in read_json(path))
    except OSError as error:
        raise PopulationError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError) as error:
        raise PopulationError(f"{path}: expected a list of populations ({error})") from None


def _population(facts: object) -> Population:
    """One entry; ValueError or TypeError where it is none."""
    if not isinstance(facts, dict):
        raise ValueError("an entry must be an object")
    one = Population(**facts)
    if not isinstance(one.name, str) or not _NAME.fullmatch(one.name):
        raise ValueError("name must be letters, digits, '_', '-' and '.'")
    texts = (one.ledger, one.data or "", one.schema or "")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{one.name}: ledger, data and schema must be texts")
    return one


def choose(directory: Path, data: Path | None = None, name: str | None = None) -> Population:
    """The population whose rows are asked for: by name, by where they lie, or the only one."""
    populations = known(directory)
    if name is not None:
        populations = tuple(one for one in populations if one.name == name)
    elif data is not None and len(populations) > 1:
        populations = tuple(one for one in populations if one.data == str(data.absolute()))
    if len(populations) == 1:
        return populations[0]
    if not known(directory):
        raise PopulationError(
            f"{directory}: knows no data yet; expected `tacit-client data add NAME --ledger PATH` "
            "first, once for the people in the data"
        )
    names = ", ".join(one.name for one in known(directory))
    raise PopulationError(f"expected one of the populations {names}, got {name or data or 'none'}")


def schema_of(directory: Path, data: Path | None = None, name: str | None = None) -> str | None:
    """The text of the schema that was registered with the data; None where none was."""
    population = choose(directory, data, name)
    if population.schema is None:
        return None
    path = directory / "schemas" / f"{population.name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PopulationError(f"{path}: expected the registered schema ({error})") from None
    if schema_digest(text) != population.schema:
        raise PopulationError(
            f"{path}: is not the schema that was registered; expected `tacit-client data add "
            f"{population.name} --schema FILE` to register another"
        )
    return text


def cache_folder(directory: Path, name: str) -> Path:
    """Where the encoded copies of a population's rows lie."""
    return directory / CACHE / name


def forget_data(directory: Path, name: str) -> Population:
    """Forget where a population's rows lie; its name, its schema and its ledger stay for good."""
    one = choose(directory, name=name)
    populations = [replace(each, data=None) if each == one else each for each in known(directory)]
    _write(directory, populations)
    return one


def open_ledger(population: Population, contents: str | None = None) -> Ledger:
    """The ledger of a population, whose log hears of it where the data's `contents` have changed.

    `contents` is their fingerprint.
    """
    ledger = Ledger.open(Path(population.ledger))
    if ledger.population != population.name:
        raise LedgerError(
            population.ledger, f"is of {ledger.population!r}, expected {population.name!r}"
        )
    if contents is not None:
        log_contents(ledger, contents)
    return ledger


def log_contents(ledger: Ledger, digest: str) -> bool:
    """Note the data's fingerprint if it is another than the last; True if it was noted."""
    noted = [note.details.get("sha256") for note in ledger.notes() if note.what == "contents"]
    if noted and noted[-1] == digest:
        return False
    ledger.note("contents", sha256=digest)
    return True


def log_schema(ledger: Ledger, digest: str) -> None:
    """Note the digest of the data's schema if it is another than the last."""
    noted = [note.details.get("sha256") for note in ledger.notes() if note.what == "schema"]
    if not noted or noted[-1] != digest:
        ledger.note("schema", sha256=digest)


def log_policy(ledger: Ledger, policy: Policy) -> bool:
    """Note the policy's limit and cap if they are others than the last; True if noted."""
    limit: dict[str, str | int] = {
        "epsilon": repr(policy.epsilon),
        "delta": repr(policy.delta),
        "records": policy.records_per_subject,
    }
    noted = [dict(note.details) for note in ledger.notes() if note.what == "policy"]
    if noted and noted[-1] == limit:
        return False
    ledger.note("policy", **limit)
    return True


def fingerprint(data: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder."""
    total = hashlib.sha256()
    try:
        files = sorted(p for p in data.rglob("*") if p.is_file()) if data.is_dir() else [data]
        for path in files:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            if not data.is_dir():
                return content
            total.update(f"{path.relative_to(data)}\0{content}\n".encode())
    except OSError as error:
        raise PopulationError(f"--data {data}: cannot be read ({error.strerror})") from None
    return total.hexdigest()
