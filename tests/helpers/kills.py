"""Kills a process at every system call by which it changes the disk, in turn.

This is done by ptrace, so that calls of C and Rust libraries count, too. `every_kill(work, check)` forks a child for
each such call of `work`; the child gets SIGKILL when it is about to make the call, and `check` then looks at what is
left. Linux on x86-64 and AArch64.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable

import pytest

# Numbers of the calls that change a disk (asm/unistd_64.h; asm-generic/unistd.h).
_X86_64 = """
1 write, 2 open, 18 pwrite64, 20 writev, 40 sendfile, 74 fsync, 75 fdatasync, 76 truncate, 77 ftruncate, 82 rename,
83 mkdir, 84 rmdir, 85 creat, 86 link, 87 unlink, 88 symlink, 90 chmod, 91 fchmod, 257 openat, 258 mkdirat,
263 unlinkat, 264 renameat, 265 linkat, 266 symlinkat, 268 fchmodat, 285 fallocate, 316 renameat2, 326 copy_file_range
"""
_AARCH64 = """
34 mkdirat, 35 unlinkat, 36 symlinkat, 37 linkat, 38 renameat, 45 truncate, 46 ftruncate, 47 fallocate, 52 fchmod,
53 fchmodat, 56 openat, 64 write, 66 writev, 68 pwrite64, 71 sendfile, 82 fsync, 83 fdatasync, 276 renameat2,
285 copy_file_range
"""
_TABLE = {"x86_64": _X86_64, "aarch64": _AARCH64}.get(platform.machine(), "")
CALLS = {int(number): name for number, name in (call.split() for call in _TABLE.split(",") if call.strip())}

# linux/ptrace.h
_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_SYSGOOD, _TRACECLONE, _EXITKILL = 1, 8, 0x100000
_ALL_CHILDREN = 0x40000000  # __WALL of linux/wait.h: threads, too


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    call = ctypes.CDLL(None, use_errno=True).ptrace
    call.restype, call.argtypes = ctypes.c_long, [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    done = call(request, pid, address, data)
    if done == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"ptrace {request:#x}")
    return done


def _entered(tid: int) -> str | None:
    """Name of the disk-changing call that a stopped thread is about to make; None for any other stop."""
    info = ctypes.create_string_buffer(128)
    _ptrace(_GET_SYSCALL_INFO, tid, 128, ctypes.addressof(info))
    if info.raw[0] != 1:  # PTRACE_SYSCALL_INFO_ENTRY
        return None
    number, _, second, third = struct.unpack_from("4Q", info.raw, 24)
    name = CALLS.get(number)
    if name in ("open", "openat") and not (third if name == "openat" else second) & os.O_CREAT:
        return None
    return name


def killed_at(n: int | None, work: Callable[[], object]) -> list[str]:
    """Runs `work` in a forked child that is killed at its n-th disk-changing call; returns the calls before it.

    Args:
        n: counted from 0; None: the child is not killed.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.waitpid(child, 0)
    _ptrace(_SETOPTIONS, child, 0, _SYSGOOD | _TRACECLONE | _EXITKILL)
    _ptrace(_SYSCALL, child)
    calls: list[str] = []
    while True:
        tid, status = os.waitpid(-1, _ALL_CHILDREN)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if tid != child:
                continue
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0, "the work itself failed; its traceback is above"
            return calls
        stopped = os.WSTOPSIG(status)
        try:
            if stopped == signal.SIGTRAP | 0x80:
                if name := _entered(tid):
                    if len(calls) == n:
                        os.kill(child, signal.SIGKILL)
                        continue
                    calls.append(name)
                stopped = 0
            elif stopped in (signal.SIGTRAP, signal.SIGSTOP):  # a thread begins
                stopped = 0
            _ptrace(_SYSCALL, tid, 0, stopped)
        except ProcessLookupError:  # the thread stopped, and then its process was killed or ended
            continue


def every_kill(
    work: Callable[[], object],
    check: Callable[[str], object],
    prepare: Callable[[], object] = lambda: None,
    least: int = 5,
) -> int:
    """Kills `work` at each of its disk-changing calls; returns how many there were.

    Args:
        prepare: called before each run of `work`: puts the former state there.
        check: called after each kill, in this process, with the place of the call ("7 rename"); raises if what is left
            is wrong.
        least: guards against a work that does nothing.
    """
    if not CALLS or sys.platform != "linux":
        pytest.skip(f"the numbers of the system calls of {sys.platform} on {platform.machine()} are not known")
    prepare()
    calls = killed_at(None, work)
    assert len(calls) >= least, calls
    for n, name in enumerate(calls):
        prepare()
        killed_at(n, work)
        check(f"{n} {name}")
    return len(calls)
