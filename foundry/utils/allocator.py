"""Memory settings for training on a CPU.

The C library returns the memory of large tensors to the kernel when they are freed, and gets it back at the next step:
tens of thousands of page faults per step. Keeping the memory, in huge pages, costs nothing and gave 1.1 to 1.4 times
the throughput (measured on another machine). jemalloc does it best, where the system has it (Debian: `apt install
libjemalloc2`); glibc can do it with settings of its own. Both read their settings when a process starts, so
`keep_memory` restarts this one once, with the same process id. No bit of a result depends on it.
"""

from __future__ import annotations

import os
import sys
from glob import glob

TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:glibc.malloc.trim_threshold=17179869184"
JEMALLOC = "thp:always,dirty_decay_ms:-1,muzzy_decay_ms:-1"
_NAME = "FOUNDRY_ALLOCATOR"


def keep_memory() -> None:
    """Restarts this process with memory settings; does nothing if the user has own settings, or not on Linux."""
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
    """The name of the allocator in use, for the log."""
    return os.environ.get(_NAME, "the system's")
