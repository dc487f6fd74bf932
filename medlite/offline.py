"""Forbids the internet to this process and its children, to prove that nothing needs it.

Two guards. An audit hook sees what Python code does (PEP 578) and cannot be removed. On Linux a seccomp filter also
stops native code and child processes: the kernel ends whoever asks for an internet socket (man 2 seccomp). Sockets
between processes of this machine (AF_UNIX) stay allowed.
"""

import ctypes
import os
import platform
import socket
import struct
import sys
from typing import Any

ATTEMPT_EXIT_CODE = 97
ATTEMPT_MARK = "medlite: internet access was attempted:"

NAME_LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", None, "")

# Source: linux/prctl.h, linux/seccomp.h, linux/filter.h, linux/audit.h, and asm/unistd.h of each processor.
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
SYSCALL_NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
SOCKET_CALLS = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
AF_INET, AF_INET6 = 2, 10


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid_internet() -> tuple[str, ...]:
    """Install the guards and return the names of those that hold: "python", and "system" where the kernel helps.

    Call it first in a process of its own; it cannot be undone. An attempt from Python ends the process with
    ATTEMPT_EXIT_CODE and a line that begins with ATTEMPT_MARK; one from native code ends it with SIGSYS.
    """
    sys.addaudithook(_stop_python)
    return ("python", "system") if _filter_system_calls() else ("python",)


def _stop_python(event: str, arguments: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    if event == "socket.__new__":
        forbidden = arguments[1] in (socket.AF_INET, socket.AF_INET6)
    else:
        forbidden = event in NAME_LOOKUPS and arguments[0] not in LOOPBACK_NAMES
    if forbidden:
        # Not an exception: a library that swallows exceptions must not hide an attempt.
        os.write(2, f"{ATTEMPT_MARK} {event} {arguments[1:]}\n".encode(errors="replace"))
        os._exit(ATTEMPT_EXIT_CODE)


def _filter_system_calls() -> bool:
    """Let the kernel end this process or a child when it opens an internet socket; False where that is not offered."""
    known = SOCKET_CALLS.get(platform.machine())
    if sys.platform != "linux" or known is None:
        return False
    architecture, socket_call = known
    instructions = (
        (LOAD_WORD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 0, 6, architecture),
        (LOAD_WORD, 0, 0, SYSCALL_NUMBER),
        (JUMP_IF_EQUAL, 0, 4, socket_call),
        (LOAD_WORD, 0, 0, FIRST_ARGUMENT),
        (JUMP_IF_EQUAL, 1, 0, AF_INET),
        (JUMP_IF_EQUAL, 0, 1, AF_INET6),
        (RETURN, 0, 0, KILL_PROCESS),
        (RETURN, 0, 0, ALLOW),
    )
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), packed)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    if prctl(PR_SET_NO_NEW_PRIVS, 1, None, 0, 0) != 0:
        return False
    return bool(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0) == 0)
