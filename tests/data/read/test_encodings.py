"""Files that are not UTF-8 are read in the encoding of their source; without one, the encoding is reported first."""

import json
import logging

import pytest
from cleaning import REPORTS, refused, run, texts
from reading import put, read, said

from foundry.config import ConfigError, DataError, parse_config
from foundry.data.read.encoding import guess_encoding

HEROES = "刘玄德关云长张翼德曹孟德孙仲谋诸葛孔明周公瑾司马仲达吕奉先赵子龙"
DEEDS = "引兵渡江夜袭大营火烧连船智取城池单骑救主舌战群儒草船借箭三顾茅庐"
WORDS = [
    "функция",
    "строка",
    "считает",
    "сумму",
    "длина",
    "ошибка",
    "сервер",
    "запрос",
    "ответ",
    "поток",
    "память",
    "число",
    "список",
    "ключ",
    "значение",
]


def chapter(n):
    """Chinese text that no rule drops, another one for each number."""
    rule = [(n * 37 + k * k * 11 + k * 7) % 30 for k in range(90)]
    lines = ["".join((HEROES, DEEDS)[k % 2][(i + k + n) % 30] for k in range(12)) + "。" for i in rule]
    return f"第{n}回\n" + "\n".join(lines)


def program(n):
    comment = " ".join(WORDS[(n * 7 + k * k) % len(WORDS)] for k in range(2))
    return "\n".join(f"def name_{n}_{k}(argument):\n    return argument + {n * k} # {comment} {k}" for k in range(12))


def corpus(project, make, encoding, ending="txt"):
    """60 documents in two files."""
    (project / "corpus").mkdir()
    between = "\n<|endoftext|>\n" if ending == "txt" else ""
    for name, first in (("a", 0), ("b", 30)):
        text = between.join(make(n) for n in range(first, first + 30))
        (project / f"corpus/{name}.{ending}").write_bytes(text.encode(encoding))


LOOSE = {
    "max_dup_line_ratio": 1.0,
    "max_top_ngram_ratio": 1.0,
    "near_dedup": "ignore",
    "identify_language": False,
    "val_fraction": 0.2,
    "test_fraction": 0.2,
}


def test_chinese_in_gbk_is_refused_with_the_encoding_first_and_no_hint_to_loosen_a_rule(project):
    corpus(project, chapter, "gbk")
    source = {"name": "book", "url": "file:corpus/*.txt"}
    message = refused("it looks like gb18030: set `encoding: gb18030` for the source book", source, **LOOSE)
    assert message.startswith("book/a.txt and 1 more file: most of the text is not valid UTF-8; it looks like gb18030")
    assert "symbol_ratio 60" in message and "max_symbol_ratio" not in message and "see " not in message
    report = run({**source, "encoding": "gbk"}, **LOOSE)
    assert report["documents"]["kept"] == 60 and "invalid_utf8" not in {
        k for k, n in report["documents"]["repaired"].items() if n
    }
    assert set(texts()) == {chapter(n) for n in range(60)}


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_comments_in_windows_1251_are_a_warning_first_and_text_once_named(project, caplog):
    corpus(project, program, "cp1251")
    source = {"name": "code", "url": "file:corpus/*.txt", "html": "keep"}
    with caplog.at_level("WARNING"):
        run(source, **LOOSE, fix_mojibake=False)
    assert (
        "code/a.txt and 1 more file: most of the text is not valid UTF-8; it looks like cp1251" in warnings(caplog)[0]
    )
    assert not any("функция" in t for t in texts())
    caplog.clear()
    run({**source, "encoding": "windows-1251"}, **LOOSE)
    assert not warnings(caplog) and set(texts()) == {program(n) for n in range(60)}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_utf16_without_a_mark_is_named(project, story, encoding, ending):
    def make(n):
        return story(n) if ending == "txt" else json.dumps({"text": f"{story(n)} Stück"}, ensure_ascii=False) + "\n"

    corpus(project, make, encoding, ending=ending)
    source = {"name": "s", "url": f"file:corpus/*.{ending}"}
    refused(f"s/a.{ending} and 1 more file: .*it looks like {encoding}: set `encoding: {encoding}`", source)
    assert run({**source, "encoding": encoding})["documents"]["kept"] == 60


def test_every_reader_of_text_reads_the_named_encoding(tmp_path):
    text = "Привет, мир"
    for name, content in {
        "a.txt": text,
        "a.md": text,
        "a.jsonl": json.dumps({"text": text}, ensure_ascii=False) + "\n",
        "a.json": json.dumps([{"text": text}], ensure_ascii=False),
        "a.csv": f'text\n"{text}"\n',
        "a.html": f"<html><body><p>{text}</p></body></html>",
    }.items():
        for encoding in ("cp1251", "koi8-r", "utf-16-le", "utf-16", "utf-8", "utf-8-sig", "UTF8"):
            path = put(tmp_path, name, content.encode(encoding))
            items = read(path, encoding=encoding)
            assert said(items) == [text] and not items[0].repaired, (name, encoding)


def test_a_large_file_in_a_named_encoding_is_the_same_for_every_size_of_units(tmp_path):
    rows = [json.dumps({"text": f"номер {i}"}, ensure_ascii=False) for i in range(200)]
    path = put(tmp_path, "a.jsonl", ("\n".join(rows) + "\n").encode("utf-16-le"))
    assert said(read(path, encoding="utf-16-le", unit_bytes=100)) == [f"номер {i}" for i in range(200)]


def test_what_is_not_in_the_named_encoding_is_counted_and_a_contrary_mark_refused(project, tmp_path):
    path = put(tmp_path, "a.txt", "текст".encode("utf-16"))
    with pytest.raises(DataError, match="byte order mark of UTF-16, but its source has encoding: cp1251"):
        read(path, encoding="cp1251")
    path = put(tmp_path, "b.txt", b"abc \xff\xff def")
    assert read(path, encoding="gbk")[0].repaired


@pytest.mark.parametrize("name", ["no-such", "base64", "rot13", "idna", "punycode", "unicode_escape", "", "a b"])
def test_what_is_not_an_encoding_of_text_is_refused_before_any_work(name):
    with pytest.raises(ConfigError, match="encoding is not one that Python knows"):
        parse_config({"download": {"sources": [{"name": "s", "url": "file:corpus/a", "encoding": name}]}})


def test_guesses_are_encodings_that_python_reads(story):
    for encoding, text in {
        "gb18030": chapter(3),
        "cp1251": "Все счастливые семьи похожи друг на друга. " * 9,
        "shift_jis": "吾輩は猫である。名前はまだ無い。" * 20,
        "big5": "話說天下大勢，分久必合，合久必分。" * 20,
    }.items():
        guess = guess_encoding(text.encode(encoding)[:4096])
        assert text.encode(encoding).decode(guess) == text, (encoding, guess)
    for raw in (b"", b"plain", "grün".encode(), bytes(range(256)) * 16):
        assert guess_encoding(raw) is None


def test_the_guess_is_no_part_of_any_result(project, story):
    """It is a hint in a message: reports do not depend on how a file is divided."""
    corpus(project, lambda n: f"{story(n)} Füße", "cp1252")
    run({"name": "s", "url": "file:corpus/*.txt"})
    assert "encoding" not in json.loads((REPORTS / "clean.json").read_text())["documents"]
    assert all(t.endswith("Füße") for t in texts())
