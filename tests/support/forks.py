"""Processes of tests that are forks of this one: what takes seconds to import is there at once.

A test whose subject is the start of a process starts it as users do; for all others the process
is as real, with its own memory, signals and end.
"""

import json
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import pytest


class Fork:
    """A function in a process of its own, with what `subprocess.Popen` has for it.

    It ends with the function's exit code: 0 where it returns, that of its SystemExit, else 1.
    """

    def __init__(
        self,
        work: Callable[[], object],
        *,
        output: IO[str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: str | Path = ".",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Its stdout and stderr go to `output`, or nowhere; its stdin is `self.stdin`."""
        read, write = os.pipe()
        set_up, ready = os.pipe()
        out = os.open(os.devnull, os.O_WRONLY) if output is None else os.dup(output.fileno())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: this process has threads
            self.pid = os.fork()
        if not self.pid:
            self._run(work, (read, out, ready), pass_fds, cwd, env)
        for end in (read, out, ready):
            os.close(end)
        with os.fdopen(set_up, "rb") as waiting:
            waiting.read()  # until it leads a group of its own
        self.returncode: int | None = None
        self.stdin = os.fdopen(write, "wb")

    @staticmethod
    def _run(
        work: Callable[[], object],
        ends: tuple[int, int, int],
        pass_fds: Sequence[int],
        cwd: str | Path,
        env: Mapping[str, str] | None,
    ) -> NoReturn:
        code = 1
        try:
            os.setsid()
            for number in (signal.SIGALRM, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0)  # the time limit of the test
            for theirs, ours in zip((ends[0], ends[1], ends[1]), range(3), strict=True):
                os.dup2(theirs, ours)
            let_go({0, 1, 2, *pass_fds})
            os.chdir(cwd)
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            warnings.simplefilter("ignore")  # as for users; in tests a warning is an error
            forget_children()
            code = ended(work)
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, or None while it runs; minus the signal that ended it."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; TimeoutError where it takes longer than `timeout` seconds."""
        if timeout is not None and self.returncode is None:
            watched = os.pidfd_open(self.pid)
            try:
                if not select.select([watched], [], [], timeout)[0]:
                    raise TimeoutError(f"process {self.pid} did not end in {timeout:.0f} s")
            finally:
                os.close(watched)
        code = self._reap(0)
        assert code is not None
        return code

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                self.stdin.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def let_go(kept: Collection[int]) -> None:
    """Every other open file becomes /dev/null, at its number.

    It is not closed: the library that opened it may close it when this process forks again, and
    Arrow and gRPC abort where they cannot.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for number in [int(one.name) for one in Path("/proc/self/fd").iterdir()]:
        if number not in kept and number != null:
            with suppress(OSError):  # the folder's own
                os.fstat(number)
                os.dup2(null, number)


def ended(work: Callable[[], object]) -> int:
    """The exit code of a function that has this process to itself, with new standard streams."""
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(end, "w", closefd=False) for end in (1, 2))  # noqa: SIM115
    code = 0
    try:
        work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:  # noqa: BLE001 - it is shown, as a new interpreter does
        code = 1
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code


def forget_children() -> None:
    """The children of the process that was forked are not this one's."""
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None


COMMANDS = {
    "tacit-client": "client.__main__",
    "tacit-privacy": "privacy.__main__",
    "tacit-server": "server.__main__",
    "tacit-simulate": "simulations.__main__",
}
LARGE = (
    "client.agent.connection",
    "client.agent.residents",
    "client.app",
    "client.tasks.digits",
    "privacy.accounting.accountants",
    "server.app",
    "server.fleet.grid",
)
COMMAND = """#!{python} -SE
import json, os, signal, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({path!r})
told = json.dumps([{module!r}, sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [len(told).to_bytes(8, "big")], [0, 1, 2])
link.sendall(told)
number = int.from_bytes(link.recv(8), "big")
for one in (signal.SIGTERM, signal.SIGINT):
    signal.signal(one, lambda which, _: os.kill(number, which))
sys.exit(int.from_bytes(link.recv(8), "big"))
"""


@contextmanager
def forked_commands(folder: Path) -> Iterator[Path]:
    """A folder for PATH whose `tacit-*` are forks of one process that has loaded everything."""
    for module in LARGE:
        import_module(module)
    folder.mkdir(parents=True)
    path = str(folder / "link")
    for name, module in COMMANDS.items():
        script = folder / name
        script.write_text(COMMAND.format(python=sys.executable, path=path, module=module))
        script.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        server = Fork(lambda: _serve(listening), pass_fds=(listening.fileno(),))
    try:
        yield folder
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _serve(listening: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # they are reaped by the kernel
    while True:
        link, _ = listening.accept()
        if not os.fork():
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run_for(link)
        link.close()


def _run_for(link: socket.socket) -> NoReturn:
    """Run a command and say its exit code; end it where nobody waits for it any more."""
    size, streams, _, _ = socket.recv_fds(link, 8, 3)
    with link.makefile("rb") as reading:
        module, words, cwd, environment = json.loads(reading.read(int.from_bytes(size, "big")))
    child = os.fork()
    if not child:
        link.close()
        for ours, theirs in enumerate(streams):
            os.dup2(theirs, ours)
            os.close(theirs)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = words
        os._exit(ended(import_module(module).main))
    for stream in streams:
        os.close(stream)
    link.sendall(child.to_bytes(8, "big"))
    watched = os.pidfd_open(child)
    if watched not in select.select([watched, link], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        link.sendall((code if code >= 0 else 128 - code).to_bytes(8, "big"))
    os._exit(0)


def fork_model_processes(patch: pytest.MonkeyPatch) -> None:
    """The coordinator's process with the model is a fork of this one."""
    from server import model_process

    context = multiprocessing.get_context("fork")
    patch.setattr(model_process, "multiprocessing", SimpleNamespace(get_context=lambda _: context))


def fork_closed_processes(patch: pytest.MonkeyPatch) -> None:
    """Task packages' closed processes are forks of this one, and then close their doors as ever."""
    from client.tasks.packages import audit, closed_process, worker  # noqa: F401 - what they import

    def started(command: Sequence[str], **options: Any) -> Fork:
        descriptor = int(command[-1])
        work = lambda: worker.main(descriptor)  # noqa: E731
        wanted = {name: options[name] for name in ("pass_fds", "cwd", "env")}
        return Fork(work, **wanted)

    names = {"PIPE": subprocess.PIPE, "DEVNULL": subprocess.DEVNULL}
    patch.setattr(closed_process, "subprocess", SimpleNamespace(Popen=started, **names))
