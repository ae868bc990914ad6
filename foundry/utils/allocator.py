"""Memory settings for training on a CPU.

The C library gives big tensors back to the kernel when they are freed and faults them in again at the next step: tens of thousands of
page faults a step. Keeping the memory, in huge pages, costs nothing and gave 1.1 to 1.4 times the throughput (measured on another
machine). jemalloc does it best, where the system has it (Debian: `apt install libjemalloc2`); glibc can do it by its own settings. Either is
read when a process starts, so `keep_memory` starts it anew once, with the same process id. No bit of a result depends on it.
"""

from __future__ import annotations

import os
import sys
from glob import glob

TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184"
JEMALLOC = "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"
_NAME = "FOUNDRY_ALLOCATOR"


def keep_memory() -> None:
    """Replaces this process by itself with memory settings; does nothing where the user has settings of their own, or not on Linux."""
    own = {"GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF", _NAME, "RANK"}
    if own & os.environ.keys() or not sys.platform.startswith("linux"):
        return
    if found := sorted(glob("/usr/lib/*/libjemalloc.so.2") + glob("/usr/lib64/libjemalloc.so.2")):
        os.environ |= {"LD_PRELOAD": found[0], "MALLOC_CONF": JEMALLOC, _NAME: f"jemalloc ({found[0]}), huge pages"}
    elif os.confstr("CS_GNU_LIBC_VERSION"):
        os.environ |= {"GLIBC_TUNABLES": TUNABLES, _NAME: "glibc's, huge pages"}
    else:
        return
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def allocator() -> str:
    """What holds the memory, for the log."""
    return os.environ.get(_NAME, "the system's")
