"""The numbers of the tokenizer's report, against counts made one by one."""

import re
from collections import Counter

import pytest
from sentencepiece import SentencePieceProcessor

from foundry.config import ConfigError, DataError, TokenizerParams
from foundry.data.tokens.shards import read_clean
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.facts import table, tokenizer_facts
from foundry.tokenizers.page import write_page
from foundry.tokenizers.train import train_tokenizer

CHINESE = "北京是中国的首都。上海，天津！"


@pytest.fixture(scope="module")
def held_out(clean):
    texts = [r["text"] for rows in read_clean(clean / "val", ["text"]) for r in rows]
    return [(t, "en") for t in texts] + [(CHINESE * i, "zh") for i in (1, 2, 3)] + [("Öl und Käse", "de")]


def test_the_facts_are_what_counting_gives(tokenizer, held_out):
    facts = tokenizer_facts(tokenizer.path, held_out)
    ids = [tokenizer.encode(t) for t, _ in held_out]
    flat = [i for e in ids for i in e]
    n_bytes = sum(len(t.encode()) for t, _ in held_out)
    trained = facts.trained
    assert trained.sha256 == tokenizer.sha256 and trained.vocab_size == 400 and facts.kind == "bpe"
    assert facts.held_out_documents == len(held_out) and facts.lossy_documents == 0
    assert trained.bytes_per_token == pytest.approx(n_bytes / len(flat), abs=1e-4)
    assert trained.byte_token_share == pytest.approx(sum(map(tokenizer.is_byte, flat)) / len(flat), abs=1e-5)
    for lang in ("en", "de", "zh"):
        texts = [t for t, x in held_out if x == lang]
        tokens = sum(len(e) for e, (_, x) in zip(ids, held_out, strict=True) if x == lang)
        entry = trained.languages[lang]
        assert (entry.documents, entry.tokens) == (len(texts), tokens)
        assert entry.tokens_per_char == pytest.approx(tokens / sum(map(len, texts)), abs=1e-4)
        if lang == "zh":
            assert entry.tokens_per_word is None
        else:
            words = sum(len(re.findall(r"\S+", t)) for t in texts)
            assert entry.tokens_per_word == pytest.approx(tokens / words, abs=1e-4)


def test_the_use_of_the_vocabulary_and_its_histograms(tokenizer, held_out):
    facts = tokenizer_facts(tokenizer.path, held_out).trained
    counts = Counter(i for t, _ in held_out for i in tokenizer.encode(t))
    normal = [i for i in range(3, 400) if not (tokenizer.is_byte(i) or tokenizer.is_control(i))]
    assert facts.pieces == len(normal) and facts.pieces_used == sum(i in counts for i in normal)
    assert facts.pieces_used_share == pytest.approx(facts.pieces_used / len(normal), abs=1e-4)
    assert facts.piece_lengths == {
        str(k): n for k, n in sorted(Counter(len(tokenizer.piece(i)) for i in normal).items())
    }
    ranked = [n for _, n in counts.most_common()]
    shares = facts.token_share_by_rank
    assert list(shares) == ["1-10", "11-30", "31-100", "101-300", "301-400"]
    assert shares["11-30"] == pytest.approx(sum(ranked[10:30]) / sum(ranked), abs=1e-5)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)


def test_a_reference_gets_the_same_numbers(tokenizer, held_out, tmp_path):
    train_tokenizer(["the salt of the river " * 50], TokenizerParams(vocab_size=300), tmp_path / "r.model")
    facts = tokenizer_facts(tokenizer.path, held_out, tmp_path / "r.model")
    trained, reference = facts.trained, facts.reference
    assert reference == tokenizer_facts(tmp_path / "r.model", held_out).trained
    assert reference.bytes_per_token < trained.bytes_per_token and reference.languages.keys() == {"en", "zh", "de"}
    lines = table(facts)
    assert "trained" in lines[0] and "reference" in lines[0] and len({len(line) for line in lines}) == 1
    assert any(
        line.split() == ["bytes", "per", "token", str(trained.bytes_per_token), str(reference.bytes_per_token)]
        for line in lines
    )
    assert any(line.split() == ["zh:", "tokens", "per", "word", "-", "-"] for line in lines)


def test_the_page_shows_both_vocabularies_and_loads_nothing(tokenizer, held_out, tmp_path):
    train_tokenizer(["the salt of the river " * 50], TokenizerParams(vocab_size=300), tmp_path / "r.model")
    facts = tokenizer_facts(tokenizer.path, held_out, tmp_path / "r.model")
    write_page(tmp_path / "page.html", facts)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=|@import|url\(|<script""", html)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", html, flags=re.S)))
    for name, side in (("trained", facts.trained), ("reference", facts.reference)):
        for lang, x in side.languages.items():
            assert f"{lang} {name} {x.documents} " in text and f" {x.bytes_per_token} {x.tokens_per_char} " in text
        assert f"Lengths of the pieces, {name}" in text
    for length, count in facts.trained.piece_lengths.items():
        assert f"{length} character{'s'[: length != '1']} {count} " in text


def test_a_reference_may_have_other_control_symbols_and_another_normalisation(tokenizer, held_out, tmp_path):
    """`Tokenizer` refuses such a model, the comparison does not."""
    from sentencepiece import SentencePieceTrainer

    with open(tmp_path / "r.model", "wb") as f:
        SentencePieceTrainer.train(
            sentence_iterator=iter(["some words only, some words"] * 20),
            model_writer=f,
            vocab_size=30,
            hard_vocab_limit=False,
            bos_id=5,
            minloglevel=2,
        )
    reference = tokenizer_facts(tokenizer.path, held_out, tmp_path / "r.model").reference
    sp = SentencePieceProcessor(model_file=str(tmp_path / "r.model"))
    assert sum(e.tokens for e in reference.languages.values()) == sum(len(sp.encode(t)) for t, _ in held_out)


def test_a_wrong_reference_is_refused(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer.reference: .*none.model does not exist"):
        tokenizer_facts(tokenizer.path, [], tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"bad")
    with pytest.raises(ConfigError, match="is not a SentencePiece model"):
        tokenizer_facts(tokenizer.path, [], tmp_path / "bad.model")


def test_a_text_that_does_not_come_back_is_refused_or_counted(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"changes when it is encoded and decoded: 'a▁b'"):
        tokenizer_facts(tokenizer.path, [("fine", "en"), ("a▁b", "en")])
    texts = [f"{chr(0x4E00 + i)} word{chr(0x4E01 + i)}" for i in range(400)]
    train_tokenizer(texts, TokenizerParams(vocab_size=425, byte_fallback=False), tmp_path / "tokenizer.model")
    assert not Tokenizer(tmp_path).byte_fallback
    assert tokenizer_facts(tmp_path, [("word\nword", "en"), ("wörd", "en")]).lossy_documents == 1
