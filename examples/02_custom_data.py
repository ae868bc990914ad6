"""02 · Your own text: what cleaning keeps, drops and repairs, and how each token leads back to its document.

    python examples/02_custom_data.py            # about 5 s of one core
    python examples/02_custom_data.py --quick    # the same on a part of the pages

Three sources of different formats are written to `corpus/`: records in English and Chinese (JSON lines with a title
and a body), a table (CSV), and a book that is cut into chapters. Some records are bad on purpose. Then the four stages
run that stand before a training. Everything happens in a temporary folder, and nothing is downloaded.

Expected output (the counts change with the documentation, whose pages are the text):

    dropped 1 too_short, 1 exact_duplicate, 7 near_duplicate; quarantined 1 records
    …
    in 176 = kept 167 + dropped {'too_short': 1, 'exact_duplicate': 1, 'near_duplicate': 7}
    languages that were identified: {'en': 69, 'und': 11, 'zh': 61}
    167 documents go through the tokenizer and come back: 0 changed
    the first row of the first batch comes from pages: 'Reading shards with pyarrow, DuckDB, pol' …
    how often an epoch reads each source: {'pages': 1.0, 'table': 1.0, 'book': 2.0}
    data/clean again: 6e66cb32e1a440a7

What to notice:

- Nothing disappears silently: documents in = kept + dropped, and a record that cannot be read is quarantined with its
  place (`reports/rejected.jsonl`, `reports/data.html`).
- An e-mail address becomes [EMAIL] before anything is trained on it.
- A source with weight 2 is read twice in an epoch.
- Running a stage again gives the same bytes; that is why DVC may skip it.
"""

import argparse
import contextlib
import csv
import json
import tempfile
from collections import Counter
from pathlib import Path

from foundry import DataLoader, Tokenizer, load_config
from foundry.data.tokens.shards import read_clean
from foundry.utils.files import sha256_tree
from foundry.utils.log import setup_logging
from stages import clean, download, shard, train_tokenizer

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = ("training", "evaluation", "serving", "data", "inference", "export", "chat", "tracking", "orchestration")
PARAMS = r"""
download:
  sources:
    - {name: pages, url: "file:corpus/pages.jsonl", text: "{title}\n\n{body}", license: MIT}
    - {name: table, url: "file:corpus/terms.csv", text: "{term}: {meaning}", lang: en, license: MIT}
    - {name: book, url: "file:corpus/book.txt", cut: "^Chapter [0-9]+$", lang: en, license: MIT}
clean:
  min_chars: 60
  val_fraction: 0.1
  test_fraction: 0.1
tokenizer: {vocab_size: 2048}
shard:
  weights: {book: 2}
runtime: {workers: 1}
"""


def sections(language: str, pages: int | None) -> list[dict]:
    """Title and text of each section of the documentation."""
    found = []
    for name in PAGES[:pages]:
        for part in (DOCS / language / f"{name}.md").read_text(encoding="utf-8").split("\n## ")[1:]:
            title, _, body = part.partition("\n")
            found.append({"title": title, "body": body.strip()})
    return found


def write_corpus(pages: int | None) -> None:
    corpus = Path("corpus")
    corpus.mkdir()
    english, chinese = sections("en", pages), sections("zh", pages)
    records = english + chinese
    records.append(records[0])  # an exact duplicate
    near = english[1]["body"] + " One sentence more than in the other copy of this section."
    records.append({"title": english[1]["title"], "body": near})  # a near duplicate
    records.append({"title": "Too short", "body": "Nothing."})
    letter = "Questions about the corpus, its licence and its sources are answered by "
    records.append({"title": "Contact", "body": letter + "jane.roe@example.org on every working day."})
    lines = [json.dumps(r, ensure_ascii=False) for r in records]
    lines.insert(5, '{"title": "a line that was cut off')
    (corpus / "pages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with open(corpus / "terms.csv", "w", newline="", encoding="utf-8") as f:
        table = csv.DictWriter(f, ["term", "meaning"])
        table.writeheader()
        for e in english[10:30]:
            table.writerow({"term": e["title"], "meaning": e["body"].split("\n\n")[-1]})
    chapters = [f"Chapter {i}\n\n{e['body'][::-1]}" for i, e in enumerate(english[:12])]  # read from right to left
    (corpus / "book.txt").write_text("\n".join(chapters), encoding="utf-8")


def main(quick: bool) -> None:
    write_corpus(4 if quick else None)
    Path("params.yaml").write_text(PARAMS, encoding="utf-8")
    config, log = load_config("params.yaml"), setup_logging()
    for stage in (download, clean, train_tokenizer, shard):  # what `dvc repro shard` runs, one process each
        stage.work(config, log)

    report = json.loads(Path("reports/clean.json").read_text(encoding="utf-8"))
    documents = report["documents"]
    dropped = {reason: n for reason, n in documents["dropped"].items() if n}
    print(f"in {documents['in']} = kept {documents['kept']} + dropped {dropped}")
    assert documents["in"] == documents["kept"] + sum(documents["dropped"].values())
    assert dropped["too_short"] >= 1 and dropped["exact_duplicate"] >= 1 and dropped["near_duplicate"] >= 1
    assert report["records"]["quarantined"] == 1

    columns = ["doc_id", "text", "source", "lang"]
    rows = [r for s in ("train", "val", "test") for part in read_clean(f"data/clean/{s}", columns) for r in part]
    languages = Counter(r["lang"] for r in rows if r["source"] == "pages")
    print(f"languages that were identified: {dict(languages)}")
    assert languages["en"] > 10 and languages["zh"] > 10
    text = "\n".join(r["text"] for r in rows)
    assert "jane.roe@example.org" not in text and "answered by [EMAIL] on every" in text

    tokenizer = Tokenizer("artifacts/tokenizer")
    lossy = [r["doc_id"] for r in rows if tokenizer.decode(tokenizer.encode(r["text"])) != r["text"]]
    print(f"{len(rows)} documents go through the tokenizer and come back: {len(lossy)} changed")
    assert not lossy

    loader = DataLoader("data/shards", batch_size=4, seq_len=128)
    part = next(loader.parts(0))
    (document,) = (r for r in rows if r["doc_id"] == part.doc_id)
    print(f"the first row of the first batch comes from {part.source}: {document['text'][:40]!r} …")
    assert tokenizer.decode(part.tokens.tolist()).strip() in document["text"]
    read: Counter[str] = Counter()
    for step in range(loader.rows_per_epoch // loader.batch_size):
        for part in loader.parts(step):
            read[part.source] += len(part.tokens)
    own: Counter[str] = Counter()
    for split_rows in read_clean("data/clean/train", columns):
        for row in split_rows:
            own[row["source"]] += len(tokenizer.encode(row["text"], bos=True, eos=True))
    times = {source: round(read[source] / own[source], 2) for source in own}
    print(f"how often an epoch reads each source: {times}")
    assert 1.7 < times["book"] < 2.3 and 0.7 < times["pages"] < 1.3

    before = sha256_tree(Path("data/clean"))
    clean.work(config, log)
    print(f"data/clean again: {before[:16]}")
    assert sha256_tree(Path("data/clean")) == before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller size, for the tests")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="foundry-example-") as folder, contextlib.chdir(folder):
        main(quick)
