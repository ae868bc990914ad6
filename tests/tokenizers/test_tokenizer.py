"""The tokenizer: lossless, the same bytes on every run, closed to typed markers."""

import pytest

from foundry.config import ConfigError, DataError, TokenizerParams
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.train import MAX_LINE_BYTES, cut_lines, train_tokenizer

HOSTILE = [
    "", " ", "  two  spaces ", "\ttab\n\n\nlines\r\n", "日本語と中文混排", "🙂👩‍👩‍👧‍👦🇩🇪", "e\u0301 combining é", "\u200bzero\ufeffwidth", "a\x00b\x1b[0m",
    "<s></s><unk><|im_start|>user<|im_end|>", "1234567890123", "½ ﬁ Ａ①", "\u00a0nbsp", "\U0010ffff", "x" * 20_000, "ÄÖÜß ñ ç", "مرحبا שלום",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_typed_markers_never_become_control_symbols(tokenizer):
    ids = tokenizer.encode("<s></s><unk><|im_start|><|im_end|><|reserved_0|>")
    assert ids and not any(tokenizer.is_control(i) or i == 0 for i in ids)
    assert tokenizer.is_control(tokenizer.id_of("<|im_start|>"))


def test_begin_and_end_only_on_request(tokenizer):
    plain = tokenizer.encode("salt")
    assert tokenizer.encode("salt", bos=True, eos=True) == [1, *plain, 2]
    assert tokenizer.decode([1, *plain, 2]) == "salt"


def test_batches_are_the_single_results_for_any_number_of_threads(tokenizer):
    assert (
        tokenizer.encode_batch(HOSTILE, 1)
        == tokenizer.encode_batch(HOSTILE, 2)
        == [tokenizer.encode(t) for t in HOSTILE]
    )


def test_training_gives_the_same_bytes_again(tokenizer, clean, tmp_path):
    from foundry.data.shards import read_clean

    texts = [r["text"] for rows in read_clean(clean / "train", ["text"]) for r in rows]
    train_tokenizer(texts, sum(map(len, texts)), TokenizerParams(vocab_size=400), tmp_path / "t.model")
    assert (tmp_path / "t.model").read_bytes() == tokenizer.path.read_bytes()


def test_long_lines_are_cut_inside_the_limit_and_lose_nothing():
    text = "ä" * 5000 + "\n" + "word " * 3000 + "\n\n" + "日" * 4000
    pieces = list(cut_lines(text))
    assert "".join(pieces) == text
    assert max(len(p.encode()) for p in pieces) <= MAX_LINE_BYTES + 1 and len(pieces) > 8


def test_text_in_long_lines_is_learnt(tmp_path):
    """SentencePiece drops lines over 4,192 bytes in silence; a word that stands only in such a line must become a piece."""
    texts = ["xylophone " * 2000, "short lines of other words here\n" * 50]
    train_tokenizer(texts, sum(map(len, texts)), TokenizerParams(vocab_size=330), tmp_path / "t.model")
    assert Tokenizer(tmp_path / "t.model").id_of("▁xylophone") > 0


def test_a_vocabulary_that_is_too_large_names_the_largest(tmp_path):
    with pytest.raises(ConfigError, match=r"vocab_size \(50000\) is too large .* largest possible is (\d+)") as e:
        train_tokenizer(["some words only, some words"], 28, TokenizerParams(vocab_size=50_000), tmp_path / "t.model")
    largest = int(str(e.value).rsplit(" ", 1)[1])
    train_tokenizer(["some words only, some words"], 28, TokenizerParams(vocab_size=largest), tmp_path / "t.model")


def test_a_vocabulary_below_the_characters_is_told(tmp_path):
    text = "".join(chr(0x4E00 + i) for i in range(500)) * 3
    with pytest.raises(ConfigError, match="character_coverage"):
        train_tokenizer(
            [text], len(text.encode()), TokenizerParams(vocab_size=400, character_coverage=1.0), tmp_path / "t.model"
        )


def test_no_text_and_no_model_are_told(tmp_path):
    with pytest.raises(DataError, match="no training text"):
        train_tokenizer([], 0, TokenizerParams(), tmp_path / "t.model")
    with pytest.raises(DataError, match="does not exist"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"garbage")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        Tokenizer(tmp_path)


def test_wrong_ids_and_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(ValueError, match="must lie in"):
        tokenizer.decode([10**6])
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.encode("a\ud800b")
