"""The system calls that a closed process may not make, as a seccomp filter (seccomp(2), bpf(4)).

Refused are the network, other processes, new programs, and everything that changes a file. Numbers
are those of x86-64 and of the generic table (aarch64); a machine of another kind gets no filter.
"""

import ctypes
import os
import platform
import struct
from typing import Final

_ENOSYS, _EPERM = 38, 1
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH = 0, 4
_ARCHES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_X32: Final = 0x40000000
_CLONE_THREAD: Final = 0x10000
_CHANGES: Final = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND, O_TMPFILE."""

_REFUSED: Final[dict[str, tuple[int | None, int | None]]] = {
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "creat": (85, None),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "link": (86, None),
    "linkat": (265, 37),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fallocate": (285, 47),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "mq_open": (240, 180),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "capset": (126, 91),
}
_ABSENT: Final = {"clone3": (435, 435), "openat2": (437, 437)}
"""Their arguments lie in memory, which a filter cannot read: the C library takes the older call."""


def supported() -> bool:
    """Whether this machine's calls are known here."""
    return platform.machine() in _ARCHES


def refuse() -> None:
    """Refuse the calls from now on, in this process and all its threads; OSError if it cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = _program()
    buffer = ctypes.create_string_buffer(code)
    head = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "prctl(no_new_privs)")
    number = 317 if platform.machine() == "x86_64" else 277
    # SECCOMP_SET_MODE_FILTER with TSYNC: threads that libraries have started are bound as well.
    if libc.syscall(number, 1, 1, ctypes.create_string_buffer(head)):
        raise OSError(ctypes.get_errno(), "seccomp")


def _program() -> bytes:
    arch, column = _ARCHES[platform.machine()]
    lines = [
        _line(_LOAD, _ARCH),
        _line(_EQUAL, arch, 1, 0),
        _line(_RETURN, _ERRNO | _EPERM),
        _line(_LOAD, _NUMBER),
    ]
    if column == 0:
        lines += [_line(_AT_LEAST, _X32, 0, 1), _line(_RETURN, _ERRNO | _EPERM)]
    for table, error in ((_REFUSED, _EPERM), (_ABSENT, _ENOSYS)):
        for numbers in table.values():
            number = numbers[column]
            if number is not None:
                lines += [_line(_EQUAL, number, 0, 1), _line(_RETURN, _ERRNO | error)]
    opening = [(2, 1), (257, 2)] if column == 0 else [(56, 2)]
    for number, at in opening:  # open, openat: only to read
        lines += _if(number, at, _line(_ANY_BIT, _CHANGES, 0, 1), _line(_RETURN, _ERRNO | _EPERM))
    clone, tgkill = ((56, 234), (220, 131))[column]
    thread = _line(_ANY_BIT, _CLONE_THREAD, 1, 0)  # a thread of its own is no process
    lines += _if(clone, 0, thread, _line(_RETURN, _ERRNO | _EPERM))
    mine = _line(_EQUAL, os.getpid(), 1, 0)
    lines += _if(tgkill, 0, mine, _line(_RETURN, _ERRNO | _EPERM))
    lines.append(_line(_RETURN, _ALLOW))
    return b"".join(lines)


def _if(number: int, argument: int, test: bytes, refusal: bytes) -> list[bytes]:
    """Where the call is `number`: load the low half of an argument, test it, maybe refuse."""
    low = 16 + 8 * argument
    return [
        _line(_EQUAL, number, 0, 4),
        _line(_LOAD, low),
        test,
        refusal,
        _line(_LOAD, _NUMBER),
    ]


def _line(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value & 0xFFFFFFFF)
