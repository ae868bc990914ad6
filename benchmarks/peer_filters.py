"""datatrove's side of `benchmarks.data filters`; run by the peers' Python, which need not have this project.

Reads a JSON list of texts, filters it in two processes, prints seconds and decisions.
"""

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise

SETS = ("gopher_quality", "gopher_repetition", "c4", "fineweb")
TASK = 100  # documents that a process gets at once
TEXTS = []
_made = {}


def filters():
    if not _made:
        from datatrove.pipeline import filters as f

        made = (f.GopherQualityFilter(), f.GopherRepetitionFilter(), f.C4QualityFilter(), f.FineWebQualityFilter())
        _made.update(zip(SETS, made, strict=True))
    return _made


def judge(task):
    """Decisions (kept or not) of the wanted sets, one after the other, on a range of the texts."""
    from datatrove.data import Document

    start, stop, names = task
    out = []
    for text in TEXTS[start:stop]:
        doc = Document(text=text, id="0")
        out.append(all(filters()[n].filter(doc) is True for n in names))
    return out


def load(path):
    with open(path, encoding="utf-8") as f:
        TEXTS[:] = json.load(f)


def main():
    load(sys.argv[1])
    n = len(TEXTS)
    cuts = [*range(0, n, TASK), n]
    with ProcessPoolExecutor(2, initializer=load, initargs=(sys.argv[1],)) as pool:
        list(pool.map(judge, [(0, 5, SETS)] * 4))  # models loaded
        decisions = {}
        for names in [*((s,) for s in SETS), SETS]:
            start = time.perf_counter()
            tasks = [(a, b, names) for a, b in pairwise(cuts)]
            decisions["+".join(names)] = [d for part in pool.map(judge, tasks) for d in part]
            seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "decisions": decisions}))


if __name__ == "__main__":
    main()
