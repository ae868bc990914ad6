"""Kills `dvc repro` at each of its writes, and has the commands of `make repro` repair what that left.

The commands are `foundry check` and `dvc repro`.

    python killed_dvc.py PROJECT SCRATCH      prints one JSON object per kill

DVC is imported once; each life of it is a fork, so that a hundred kills cost seconds. A write is an event of Python's
audit hook (a file opened for writing, a rename, a link, a removal, a folder) or a statement of SQLite. DVC is killed
*before* each of them, and at a file that was opened for writing also while it is *empty* and when it contains *half* of
the first piece.
"""

import builtins
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = {"os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.mkdir"}


class Killer:
    """Counts the writes under a folder; at the chosen one it kills this process.

    Args:
        at: (number of the write, how: before, empty or half); None only lists them.
    """

    def __init__(self, root, at=None):
        self.root, self.at, self.seen = str(root), at, []
        self.busy = False

    def install(self):
        sys.addaudithook(self.hook)
        real = builtins.open

        def opened(*args, **kw):
            before = len(self.seen)
            f = real(*args, **kw)
            if len(self.seen) > before:
                self.seen[-1] = (*self.seen[-1], "by Python's open")
            if self.at and len(self.seen) > before and self.at[0] == len(self.seen) - 1:
                if self.at[1] == "empty":
                    die()
                if self.at[1] == "half":
                    write = f.write

                    def half(data):
                        write(data[: max(1, len(data) // 2)])
                        f.flush()
                        die()

                    f.write = half
            return f

        builtins.open = io.open = opened
        connect = sqlite3.connect

        def connected(*args, **kw):
            connection = connect(*args, **kw)
            connection.set_trace_callback(lambda sql: self.note("sqlite", sql.split()[0]))
            return connection

        sqlite3.connect = connected
        return self

    def hook(self, event, args):
        if self.busy:
            return
        if event == "open" and isinstance(args[0], str | os.PathLike) and args[2] & WRITING:
            self.note("open", args[0])
        elif event in EVENTS and isinstance(args[0], str | os.PathLike):
            self.note(event, args[1] if event == "os.rename" else args[0])

    def note(self, event, what):
        what = os.path.abspath(os.fspath(what)) if event != "sqlite" else what
        if event != "sqlite" and not what.startswith(self.root):
            return
        self.busy = True
        number = len(self.seen)
        self.seen.append(
            (event, re.sub(r"[0-9a-f]{30,}|\.[\w-]{22}|(?<=/)[0-9a-f]{2}(?=/|$)", "*", what.removeprefix(self.root)))
        )
        if self.at == (number, "before"):
            die()
        self.busy = False


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def life(folder, work):
    """Runs `work` in a child in a folder; (how it ended, what it printed)."""
    out = folder.parent / "said"
    if not (pid := os.fork()):
        os.chdir(folder)
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        code = 1
        try:
            code = work() or 0
        except SystemExit as e:
            code = e.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out.read_text()


def repro():
    from dvc.cli import main

    return main(["repro"])


def check():
    from foundry.cli import main

    sys.argv = ["foundry", "check"]
    main()


def contents(folder):
    """{path: bytes} of what git would see."""
    skip = (".dvc/", ".git/", ".foundry/")
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {r: p.read_bytes() for p in paths if not (r := str(p.relative_to(folder))).startswith(skip)}


def damaged(folder):
    """Objects of the cache whose name is not the hash of their bytes."""
    objects = [
        p for p in (folder / ".dvc/cache/files/md5").glob("??/*") if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", p.name)
    ]
    return [
        str(p)
        for p in objects
        if hashlib.md5(p.read_bytes()).hexdigest() != p.parent.name + p.name.removesuffix(".dir")
    ]


def cases(seen):
    """The last write of each kind, as far as what it leaves can matter: not the making of DVC's temporary folders."""
    last = {key: i for i, key in enumerate(seen)}
    for key, i in last.items():
        hows = ("empty", "half") if key[1] in ("/dvc.lock", "/.dvc/tmp/rwlock") else ("empty",) if len(key) > 2 else ()
        if re.search(r"/cache/(runs|files)|^/(?!\.dvc)|rwlock$|BEGIN|COMMIT|INSERT", key[1]):
            yield from ((i, how) for how in ("before", *hows))


def main(project, scratch):
    import dvc.cli
    import dvc.commands.repro
    import dvc.repo.reproduce  # noqa: F401

    import foundry.cli  # noqa: F401

    # Each copy has the same path, as DVC's database of known files is about paths.
    folder = scratch / "project"

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(project, folder, symlinks=True)
        os.environ["DVC_SITE_CACHE_DIR"] = str(folder / ".dvc/tmp/site")

    def listed(path):
        killer = Killer(folder).install()
        code = repro()
        path.write_text(json.dumps(killer.seen))
        return code

    fresh()
    code, said = life(folder, lambda: listed(scratch / "seen"))
    assert code == 0, said
    expected = contents(folder)
    seen = [tuple(x) for x in json.loads((scratch / "seen").read_text())]
    for at in cases(seen):
        fresh()
        killed, _ = life(folder, lambda at=at: (Killer(folder, at).install(), repro())[1])
        checked, repaired = life(folder, check)
        code, said = life(folder, repro)
        rest, broken = contents(folder), damaged(folder)
        differing = sorted(k for k in expected.keys() | rest.keys() if expected.get(k) != rest.get(k))
        row = {
            "at": [*seen[at[0]], at[1]],
            "killed": killed,
            "check": checked,
            "repro": code,
            "repaired": repaired,
            "said": said,
        }
        print(json.dumps({**row, "differing": differing, "damaged": broken}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
