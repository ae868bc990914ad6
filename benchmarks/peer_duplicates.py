"""datatrove's side of `benchmarks.data duplicates`: its four MinHash stages on a jsonl folder.

The peers' Python runs it. Prints seconds and the ids of the kept documents.
"""

import gzip
import json
import sys
import time
from pathlib import Path


def main():
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter
    from datatrove.utils.hashing import HashConfig

    source, work = sys.argv[1], Path(sys.argv[2])
    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)

    def stages():
        signatures, buckets, remove, out = (str(work / n) for n in ("signatures", "buckets", "remove", "out"))
        yield [JsonlReader(source), MinhashDedupSignature(signatures, config)], 2
        yield [MinhashDedupBuckets(signatures, buckets, config=config)], 14
        yield [MinhashDedupCluster(buckets, remove, config=config)], 1
        yield [JsonlReader(source), MinhashDedupFilter(remove), JsonlWriter(out)], 2

    start = time.perf_counter()
    for number, (pipeline, tasks) in enumerate(stages()):
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=2, logging_dir=str(work / f"log{number}")).run()
    seconds = time.perf_counter() - start
    kept = []
    for path in sorted((work / "out").glob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as f:
            kept += [json.loads(line)["id"] for line in f]
    print(json.dumps({"seconds": seconds, "kept": kept}))


if __name__ == "__main__":
    main()
