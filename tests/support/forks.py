"""Processes of tests that are forks of this one: what takes seconds to import is there at once.

A test whose subject is the start of a process starts it as users do; for all others the process
is as real, with its own memory, signals and end.
"""

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
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
            kept = sorted(pass_fds)
            for first, last in zip([2, *kept], [*kept, 4096], strict=True):
                os.closerange(first + 1, last)
            os.chdir(cwd)
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except KeyboardInterrupt:
            code = 130
        except BaseException:  # noqa: BLE001 - what a new interpreter would show
            sys.excepthook(*sys.exc_info())
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, or None while it runs; minus the signal that ended it."""
        return self._reap(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; TimeoutError where it takes longer than `timeout` seconds."""
        if timeout is not None and self.returncode is None:
            import select

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
