"""The process restarts with memory settings, once, under its own id; a user's own settings are kept."""

import os
import subprocess
import sys

import pytest

CODE = """
import os
from foundry.utils import allocator
before = os.getpid()
print(before, flush=True)
allocator.glob = lambda pattern: []
allocator.keep_memory()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), allocator.allocator(), sep="|", flush=True)
"""


def run(**env):
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF", "FOUNDRY_ALLOCATOR", "RANK")
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**clean, **env}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory settings are glibc's and jemalloc's on Linux")
def test_glibc_keeps_memory_after_one_restart():
    first, again, last = run()
    pid, tunables, name = last.split("|")
    assert first == again == pid and "hugetlb=1" in tunables and name == "glibc's, huge pages"


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF", "RANK"])
def test_a_users_own_settings_stay(name):
    value = "" if name == "LD_PRELOAD" else "glibc.malloc.check=0" if name == "GLIBC_TUNABLES" else "0"
    first, last = run(**{name: value})
    assert last.split("|")[0] == first and last.endswith("|the system's")
