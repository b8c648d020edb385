"""The doors of a closed process: the filter's verdict on each call, and what a bare machine lacks.

The filter is run here by a small machine of the kernel's rules (bpf(4)); that the kernel agrees is
tried in tests/attacks/test_hostile_packages.py.
"""

import ctypes
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.tasks.packages import confinement, system_calls
from client.tasks.packages.confinement import Bounds, confine, isolate

ALLOWED, REFUSED, ABSENT = 0x7FFF0000, 0x00050001, 0x00050026
X86 = 0xC000003E


def verdict(number: int, *arguments: int, arch: int = X86) -> int:
    """What the filter answers to a call."""
    call = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("HBBI", system_calls._program()))
    at = loaded = 0
    while True:
        code, yes, no, value = program[at]
        at += 1
        if code == system_calls._RETURN:
            return value
        if code == system_calls._LOAD:
            (loaded,) = struct.unpack_from("<I", call, value)
            continue
        true = {
            system_calls._EQUAL: loaded == value,
            system_calls._AT_LEAST: loaded >= value,
            system_calls._ANY_BIT: bool(loaded & value),
        }[code]
        at += yes if true else no


@pytest.fixture(autouse=True)
def _x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


def test_every_call_of_the_table_is_refused_and_reading_is_not() -> None:
    for name, (number, _) in system_calls._REFUSED.items():
        assert number is None or verdict(number) == REFUSED, name
    for name, (number, _) in system_calls._ABSENT.items():
        assert verdict(number) == ABSENT, name
    for number in (0, 1, 3, 9, 10, 11, 12, 228, 231):  # read, write, close, mmap, ..., exit_group
        assert verdict(number) == ALLOWED


def test_a_file_is_opened_to_read_alone() -> None:
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_TMPFILE):
        assert verdict(2, 0, flags) == verdict(257, 0, 0, flags) == REFUSED
    assert verdict(2, 0, os.O_RDONLY) == verdict(257, 0, 0, os.O_CLOEXEC) == ALLOWED


def test_a_thread_may_begin_and_a_process_not() -> None:
    assert (verdict(56, 0x10000), verdict(56, 0)) == (ALLOWED, REFUSED)


def test_a_signal_reaches_this_process_alone() -> None:
    assert (verdict(234, os.getpid()), verdict(234, os.getppid())) == (ALLOWED, REFUSED)


def test_calls_of_another_architecture_or_of_x32_are_refused() -> None:
    assert verdict(0, arch=0x40000003) == REFUSED
    assert verdict(0x40000000) == REFUSED


def test_a_generic_machine_has_its_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    arch = system_calls._ARCHES["aarch64"][0]
    for name, (_, number) in system_calls._REFUSED.items():
        assert number is None or verdict(number, arch=arch) == REFUSED, name
    assert verdict(56, 0, 0, os.O_RDWR, arch=arch) == REFUSED
    assert verdict(63, arch=arch) == ALLOWED  # read


class Machine:
    """A C library that notes what it is asked and answers as one kernel would."""

    def __init__(self, *, version: int = 6, refuses: tuple[str, ...] = ()) -> None:
        self.version, self.refuses = version, refuses
        self.asked: list[str] = []

    def _does(self, what: str) -> int:
        self.asked.append(what)
        return -1 if what in self.refuses else 0

    def prctl(self, option: int, *_: int) -> int:
        return self._does({4: "no dump", 38: "no new privileges"}[option])

    def unshare(self, flags: int) -> int:
        return self._does("user" if flags & 0x10000000 else "network")

    def syscall(self, number: int, *arguments: Any) -> int:
        if number == 444 and arguments[0] is None:
            return self.version
        what = {444: "create", 445: "rule", 446: "restrict", 317: "filter"}[number]
        if (answer := self._does(what)) or what != "create":
            return answer
        return os.open(os.devnull, os.O_RDONLY)  # a rule set is a file


def on(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Put the machine in place; the limits that are set."""
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: machine)
    monkeypatch.setattr(
        confinement.resource, "setrlimit", lambda name, pair: limits.append((name, pair[0]))
    )
    return limits


def test_the_doors_are_closed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    limits = on(machine, monkeypatch)
    assert confine([tmp_path, tmp_path / "none"], Bounds(memory=1 << 20, cpu=3)) == []
    rules = machine.asked.count("rule")
    assert rules >= 2  # the folder and at least one library; what is not there is passed over
    assert [what for what in machine.asked if what != "rule"] == [
        *("no dump", "create", "no new privileges", "restrict", "no new privileges", "filter")
    ]
    set_ = dict(limits)
    resource = confinement.resource
    assert (set_[resource.RLIMIT_DATA], set_[resource.RLIMIT_CPU]) == (1 << 20, 3)
    assert set_[resource.RLIMIT_FSIZE] == 0 and resource.RLIMIT_NPROC not in set_


@pytest.mark.parametrize("refused", ["create", "rule", "no new privileges", "restrict", "filter"])
def test_what_a_kernel_refuses_is_told(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = on(Machine(refuses=(refused,)), monkeypatch)
    lost = {"no new privileges": ["landlock", "seccomp"], "filter": ["seccomp"]}
    missing = confine([tmp_path], Bounds())
    assert missing == lost.get(refused, ["landlock"])
    # Without a filter the number of processes is what is left to bound them.
    assert (confinement.resource.RLIMIT_NPROC in dict(limits)) == ("seccomp" in missing)


def test_a_kernel_without_landlock_and_a_machine_that_is_not_known_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(Machine(version=-1), monkeypatch)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert confine([tmp_path], Bounds()) == ["landlock", "seccomp"]


@pytest.mark.parametrize(
    ("refuses", "missing"),
    [((), []), (("user",), []), (("user", "network"), ["namespaces"])],
)
def test_the_network_is_left_with_a_user_of_its_own_or_without(
    refuses: tuple[str, ...], missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(refuses=refuses)
    on(machine, monkeypatch)
    monkeypatch.setattr(Path, "write_text", lambda self, text: machine.asked.append(str(self)))
    assert isolate() == missing
    assert machine.asked[0] == "user"
    assert ("/proc/self/setgroups" in machine.asked) == (not refuses)


def test_elsewhere_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confinement, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    on(Machine(), monkeypatch)
    assert isolate() == ["namespaces"]
    assert confine([tmp_path], Bounds()) == ["landlock", "seccomp"]
    assert not any(confinement.protections().values())
