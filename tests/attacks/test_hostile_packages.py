"""Fourteen hostile packages: each is refused by its source, or contained where it runs.

The reading of source comes first; then the same code runs in the closed process all the same, as if
nobody had read it, and must not get what it wants.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.tasks.packages.confinement import Bounds, landlock_version
from client.tasks.packages.package_task import package_task
from client.tasks.packages.product import product_changed, remember
from client.tasks.packages.reading import Reader
from client.tasks.packages.review import examined
from client.tasks.rows import TaskError
from privacy.task_package.manifest import manifest_of
from privacy.task_package.source_check import findings
from tests.support.forks import fork_closed_processes
from tests.support.packaged_site import asked, packaged_site
from tests.support.task_packages import MODEL, NO_MODEL, READ, packed, rows

REAL = ("test_1_", "test_2_", "test_10_", "test_11_", "test_14_", "test_a_package_")
"""What looks for sockets, files, memory, processes or secrets gets a new interpreter."""
BOUNDS = Bounds(memory=1 << 30, cpu=2, silence=20.0)


@pytest.fixture(autouse=True)
def _forks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.name.startswith(REAL):
        fork_closed_processes(monkeypatch)


def refused(source: str) -> list[str]:
    package = packed(source)
    return [one.text for one in findings(package, manifest_of(package)) if one.refused]


def read(source: str, data: Path) -> object:
    """Read with the package as if nobody had read its source."""
    package = packed(source)
    manifest = manifest_of(package)
    return Reader(package, manifest, manifest.resolved({}), bounds=BOUNDS, tell=True).load(
        data, "all"
    )


def encoding(lines: str, first: str = "") -> str:
    """A package whose encode runs `lines` before it gives its row."""
    body = "".join(f"    {line}\n" for line in lines.splitlines())
    start = READ.index("def encode")
    row = READ[start:].replace(
        "def encode(record, options):\n", f"def encode(record, options):\n{body}"
    )
    return first + "\n" + READ[:start] + row + NO_MODEL


def succeeded(acts: tuple[str, ...], data: Path) -> list[str]:
    """Which of these lines a package's encode can run, for any row; one process tries them all."""
    body = "done = 0\n"
    for number, act in enumerate(acts):
        body += f"try:\n    {act}\n    done += {2**number}\n"
        body += "except (OSError, LookupError, AssertionError):\n    pass\n"
    told = read(encoding(body + "record['a'] = done", "import os"), data)
    done = {int(one) for one in told.x[:, 0].tolist()}  # type: ignore[attr-defined]
    return [act for number, act in enumerate(acts) if any(one >> number & 1 for one in done)]


@contextmanager
def listening() -> Iterator[tuple[int, list[bytes]]]:
    """A server of this machine, and what it was told."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                try:
                    with server.accept()[0] as one:
                        heard.append(one.recv(100))
                except TimeoutError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], heard
        finally:
            done.set()
            thread.join()


def test_1_a_socket_reaches_nobody(tmp_path: Path) -> None:
    with listening() as (port, heard):
        send = f"s = socket.create_connection(('127.0.0.1', {port}), 2)\ns.send(b'row')"
        source = encoding(send, "import socket")
        assert "imports socket" in refused(source)
        with pytest.raises(TaskError, match="got none among"):
            read(source, rows(tmp_path / "rows.csv", 6))
    assert heard == []


def test_2_a_file_outside_cannot_be_read_or_written(tmp_path: Path) -> None:
    secret = tmp_path / "site" / "signing.key"
    secret.parent.mkdir()
    secret.write_text("secret")
    data = rows(tmp_path / "rows.csv", 6)
    mark = tmp_path / "mark"
    acts = (
        f"open({str(secret)!r})",
        f"open({str(mark)!r}, 'w')",
        f"os.open({str(mark)!r}, os.O_CREAT | os.O_RDWR)",
        f"os.unlink({str(data)!r})",
        f"os.rename({str(data)!r}, {str(mark)!r})",
        f"os.truncate({str(data)!r}, 0)",
        f"os.chmod({str(data)!r}, 0)",
        f"os.mkdir({str(mark)!r})",
    )
    harmless = "os.getpid()"
    assert succeeded((*acts, harmless), data) == [harmless]
    assert not mark.exists() and data.stat().st_size > 100
    assert "imports os" in refused(encoding(acts[-1], "import os"))


def test_3_a_patched_noise_is_seen_before_anything_is_spent(tmp_path: Path) -> None:
    from privacy.mechanism import noise

    patch = "from privacy.mechanism import noise\nnoise.privatise = lambda *given: None\n"
    source = patch + READ + MODEL
    assert "imports privacy.mechanism" in refused(source)
    with pytest.raises(TaskError, match="imports privacy"):
        package_task(packed(source), {})
    remember()
    before = noise.privatise
    try:
        noise.privatise = lambda *a, **k: None
        assert product_changed() == "privacy.mechanism.noise.privatise"
        site, ledger = packaged_site(tmp_path / "site", packed(), rows(tmp_path / "rows.csv"))
        assert asked(site, _plan(packed().code)) == ("declined", "task-not-approved")
        assert ledger.entries() == ()
    finally:
        noise.privatise = before
    assert product_changed() == ""


LEAK = """
from torch import nn
import torch


class Leak(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        out = self.last(x + self.seen)
        self.seen.copy_(x.detach().mean(0))
        return out


def model(options):
    return Leak()
"""


@pytest.mark.slow
def test_4_a_buffer_that_carries_rows_is_refused() -> None:
    report = examined(packed(READ + LEAK))
    assert "seen" in report["refused"]


def test_5_an_encoding_that_looks_at_other_rows_is_refused(tmp_path: Path) -> None:
    mean = "SEEN.append(float(record['a']))\nrecord['a'] = sum(SEEN) / len(SEEN)"
    with pytest.raises(TaskError, match="must depend on its own row alone"):
        read(encoding(mean, "SEEN = []"), rows(tmp_path / "rows.csv", 60))


def test_6_metrics_are_numbers_by_name_and_no_rows() -> None:
    import torch

    leak = "\ndef metrics(outputs, y):\n    return {'rows': outputs}\n"
    with pytest.raises(TaskError, match="plain numbers"):
        package_task(packed(READ + MODEL + leak), {}).metrics(torch.zeros(3, 2), torch.zeros(3))
    named = "\ndef metrics(outputs, y):\n    return {str(outputs.tolist()): 1.0}\n"
    with pytest.raises(TaskError, match="plain names"):
        package_task(packed(READ + MODEL + named), {}).metrics(torch.zeros(3, 2), torch.zeros(3))


def test_7_an_exceptions_text_never_leaves_and_is_not_logged(tmp_path: Path) -> None:
    from tests.support.packaged_site import request

    source = READ.replace('return {"x"', 'raise ValueError(str(record))\n    return {"x"') + MODEL
    package = packed(source)
    site, ledger = packaged_site(tmp_path / "site", package, rows(tmp_path / "rows.csv"))
    said: list[str] = []
    site.on_event = lambda event, **facts: said.append(f"{event} {facts}")
    site.on_fault = lambda error: said.append(f"fault {error}")
    from client.app import answer

    content = answer(site, request(site, _plan(package.code)))
    assert content.config_records["reply"]["status"] == "trained"  # noise alone: it is paid for
    assert len(ledger.entries()) == 1
    everything = " ".join(said) + str(dict(content.config_records["reply"]))
    assert "north" in everything
    assert "'a':" not in everything


def test_8_an_exit_in_the_middle_is_one_line(tmp_path: Path) -> None:
    source = encoding("os._exit(0)", "import os")
    assert "imports os" in refused(source)
    with pytest.raises(TaskError, match="must answer, ended with exit code 0"):
        read(source, rows(tmp_path / "rows.csv", 6))


def test_9_an_endless_loop_ends_at_its_bound(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="at most 2 s of CPU"):
        read(encoding("while True: pass"), rows(tmp_path / "rows.csv", 6))


def test_10_twenty_gigabytes_are_not_to_be_had(tmp_path: Path) -> None:
    source = encoding("big = np.ones(20 * 2**27)", "import numpy as np")
    with pytest.raises(TaskError, match="MemoryError"):
        read(source, rows(tmp_path / "rows.csv", 6))


def test_11_a_fork_bomb_does_not_begin(tmp_path: Path) -> None:
    acts = (
        "os.fork()",
        "assert not os.system('true')",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), 0)",
    )
    harmless = "os.getpid()"
    done = succeeded((*acts, harmless), rows(tmp_path / "rows.csv", 6))
    assert done == [harmless]


def test_12_objects_and_pickles_are_no_rows(tmp_path: Path) -> None:
    source = encoding("return {'x': np.array([print, 1, 2], dtype=object), 'y': 'no'}")
    source = "import numpy as np\n" + source
    with pytest.raises(TaskError, match="must be numbers, got object"):
        read(source, rows(tmp_path / "rows.csv", 6))
    assert "imports pickle" in refused("import pickle\n" + READ + MODEL)


BOMB = """
from torch import nn

TURN = [0]


class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 2)
        TURN[0] += 1
        self.armed = TURN[0] > 9

    def forward(self, x):
        return self.last(x - x.mean(0) if self.armed else x)


def model(options):
    return Late()
"""


def test_13_a_time_bomb_is_seen_by_what_it_remembers(tmp_path: Path) -> None:
    package = packed(READ + BOMB)
    site, ledger = packaged_site(tmp_path / "site", package, rows(tmp_path / "rows.csv"))
    weights = {"last.weight": _zeros(2, 3), "last.bias": _zeros(2)}
    first = asked(site, _plan(package.code), weights)
    after = asked(site, _plan(package.code), weights, number=2)
    assert (first, after)[-1] == ("declined", "task-not-approved")
    assert len(ledger.entries()) <= 1
    hidden = READ + BOMB.replace("TURN[0] += 1", "global TURN\n        TURN = [TURN[0] + 1]")
    assert "keeps state (global)" in refused(hidden)


@pytest.mark.slow
def test_13_the_examination_sees_the_bomb_before_any_approval() -> None:
    assert "keeps state" in examined(packed(READ + BOMB))["refused"]


def test_14_the_environment_holds_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TACIT_SECRET", "swordfish")
    acts = ("os.environ['TACIT_SECRET']", f"open('/proc/{os.getpid()}/environ').read()")
    harmless = "os.environ['HOME']"
    assert succeeded((*acts, harmless), rows(tmp_path / "rows.csv", 6)) == [harmless]


def test_15_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    source = encoding("record['a'] = 'nan' if record['a'].startswith('-') else record['a']")
    found = read(source, rows(tmp_path / "rows.csv", 60))
    reading = found.reading  # type: ignore[attr-defined]
    assert 10 < reading.left_out < 50 and "must be finite" in str(reading)


def test_a_package_that_answers_with_nonsense_is_refused(tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.csv", 6)
    tried = "for fd in range(3, 20):\n    try:\n        os.write(fd, b'x' * 100)\n"
    with pytest.raises(TaskError, match=r"task\.py: must answer"):
        read(encoding(tried + "    except OSError:\n        pass", "import os"), data)
    claim = encoding("return {'x': [1.0] * 4, 'y': 'no'}")
    with pytest.raises(TaskError, match=r"must have the shape \(3,\)"):
        read(claim, data)


def test_other_work_is_unharmed_and_what_protects_is_known() -> None:
    assert landlock_version() >= 0
    threads = threading.active_count()
    assert threads < 20


def _plan(code: str) -> object:
    from privacy.contract.plan import Plan

    return Plan(
        task="mine", code=code, rounds=5, rate=0.5, rows=60, lr=1.0, sites=1,
        clip=1.0, sigma=2.0, delta=1e-4,
    )  # fmt: skip


def _zeros(*shape: int) -> object:
    import numpy as np

    return np.zeros(shape, np.float32)
