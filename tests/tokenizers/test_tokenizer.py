"""The tokenizer: lossless, the same bytes on every run; typed markers stay text."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foundry.config import ConfigError, DataError, TokenizerParams, VocabularyError
from foundry.config.corpus import CHAT_MARKERS, RESERVED
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.train import MAX_LINE_BYTES, cut_lines, train_tokenizer

HOSTILE = [
    *("", " ", "  two  spaces ", "\ttab\n\n\nlines\r\n", "\u00a0nbsp", "x" * 20_000, "1234567890123", "½ ﬁ Ａ①"),
    *("日本語と中文混排", "🙂👩‍👩‍👧‍👦🇩🇪", "e\u0301 combining é", "ÄÖÜß ñ ç", "مرحبا שלום", "\U0010ffff"),
    *("\u200bzero\ufeffwidth", "a\x00b\x1b[0m", "<s></s><unk><|im_start|>user<|im_end|>"),
]


TEXTS = [
    f"some words only, some {w} words and {w}{w}" for w in ("salt", "water", "river", "mountain", "island", "music")
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


valid_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
odd_text = st.text("ab \t\n日é🙂\u200d\u0301\u05d0\ufeff\x00\x1b<s>|im_start0", max_size=60)


@given(st.one_of(valid_text, odd_text))
@example("<s>\U0010ffff \ud7ff")
@settings(max_examples=300, deadline=None)
def test_any_valid_text_comes_back_at_once_and_as_a_stream(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    assert "".join(map(stream.add, ids)) + stream.end() == text
    assert not any(tokenizer.is_control(i) or i == 0 for i in ids)


bytes_of_text = st.text(max_size=6).filter(lambda t: not any(0xD800 <= ord(c) < 0xE000 for c in t)).map(str.encode)


@given(st.lists(st.one_of(st.integers(0, 399), bytes_of_text, st.binary(max_size=5)), max_size=15))
@settings(max_examples=300, deadline=None)
def test_a_stream_of_any_tokens_joins_to_the_text_and_never_returns_a_part_of_a_character(tokenizer, parts):
    """Pieces, control symbols, characters spelt in bytes and broken bytes; a prefix is only ever continued."""
    ids = [i for p in parts for i in ([p] if isinstance(p, int) else [tokenizer.id_of(f"<0x{b:02X}>") for b in p])]
    expected, stream, shown = tokenizer.decode(ids), tokenizer.stream(), ""
    for i in ids:
        shown += stream.add(i)
        assert expected.startswith(shown)
    assert shown + stream.end() == expected and stream.end() == ""


@pytest.mark.parametrize("text", ["🙂", "日", "é", "👩‍👩‍👧‍👦", "e\u0301\U0010ffff"])
def test_a_stream_returns_characters_only_when_they_are_complete(tokenizer, text):
    stream = tokenizer.stream()
    seen = [stream.add(tokenizer.id_of(f"<0x{b:02X}>")) for b in text.encode()]
    assert [s for s in seen if s] == list(text) and stream.end() == ""


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


def test_training_gives_the_same_bytes_again_with_any_number_of_threads(tokenizer, clean, tmp_path):
    from foundry.data.tokens.shards import read_clean

    texts = [r["text"] for rows in read_clean(clean / "train", ["text"]) for r in rows]
    for threads in (1, 2, 4):
        train_tokenizer(texts, TokenizerParams(vocab_size=400, train_threads=threads), tmp_path / f"{threads}.model")
        assert (tmp_path / f"{threads}.model").read_bytes() == tokenizer.path.read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_unigram_model_is_the_same_bytes_again_with_the_same_threads(clean, tmp_path, threads):
    from foundry.data.tokens.shards import read_clean

    texts = [r["text"] for rows in read_clean(clean / "train", ["text"]) for r in rows]
    params = TokenizerParams(kind="unigram", vocab_size=360, train_threads=threads)
    for name in "ab":
        train_tokenizer(texts, params, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tokenizer = Tokenizer(tmp_path / "a")
    assert tokenizer.kind == "unigram" and tokenizer.keeps_text and tokenizer.byte_fallback
    assert all(tokenizer.decode(tokenizer.encode(t)) == t for t in [*HOSTILE, *texts])


def test_options_reach_the_model(tmp_path):
    texts = ["the year 1234, the year 1234:\n        indented, the     salt\n" * 30]
    train_tokenizer(texts, TokenizerParams(vocab_size=310), tmp_path / "a")
    train_tokenizer(texts, TokenizerParams(vocab_size=310, split_digits=False, whitespace_pieces=False), tmp_path / "b")
    a, b = Tokenizer(tmp_path / "a"), Tokenizer(tmp_path / "b")
    assert len(a.encode("1234")) == 4 > len(b.encode("1234"))
    assert len(a.encode("        ")) < 8 == len(b.encode("        "))
    assert all(t.decode(t.encode(x)) == x for t in (a, b) for x in [*HOSTILE, *texts])


def test_user_symbols_are_one_piece_in_text_and_markers_keep_their_ids(tokenizer, tmp_path):
    symbols = ["<tool>", "a b", "\n", "  ", "é"]
    params = TokenizerParams(vocab_size=330, user_symbols=symbols)
    train_tokenizer(["the salt of the river, the water of the sea " * 30], params, tmp_path / "t.model")
    other = Tokenizer(tmp_path / "t.model")
    for symbol in symbols:
        assert len(other.encode(symbol)) == 1 and other.decode(other.encode(symbol)) == symbol
        assert other.encode(f"x{symbol}y")[1] == other.encode(symbol)[0]
    for marker in (*CHAT_MARKERS, *RESERVED):
        assert other.id_of(marker) == tokenizer.id_of(marker) and other.is_control(other.id_of(marker))
    assert all(other.decode(other.encode(x)) == x for x in HOSTILE)


@pytest.mark.parametrize("symbol", ["", "<s>", "<unk>", "<|im_end|>", "<0x41>", "a▁b", "nul\0", "\ud83d", "twice"])
def test_a_user_symbol_that_cannot_be_a_piece_is_refused_by_the_parameters(symbol):
    rules = "user_symbols cannot contain .*a symbol must be unique|must not contain NUL|half of a surrogate pair"
    with pytest.raises(ValueError, match=rules):
        TokenizerParams(user_symbols=["twice", symbol])


def test_long_lines_are_cut_inside_the_limit_and_lose_nothing():
    text = "ä" * 5000 + "\n" + "word " * 3000 + "\n\n" + "日" * 4000
    pieces = list(cut_lines(text))
    assert "".join(pieces) == text
    assert max(len(p.encode()) for p in pieces) <= MAX_LINE_BYTES + 1 and len(pieces) > 8


def test_text_in_long_lines_is_learnt(tmp_path):
    """SentencePiece drops lines over 4,192 bytes in silence; a word that is only in such a line must become a
    piece.
    """
    texts = ["xylophone " * 2000, "short lines of other words here\n" * 50]
    train_tokenizer(texts, TokenizerParams(vocab_size=330), tmp_path / "t.model")
    assert Tokenizer(tmp_path / "t.model").id_of("▁xylophone") > 0


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_that_is_too_large_names_the_largest(tmp_path, kind):
    with pytest.raises(VocabularyError, match=r"vocab_size \(50000\) is too large .* largest possible is (\d+)") as e:
        train_tokenizer(TEXTS, TokenizerParams(kind=kind, vocab_size=50_000), tmp_path / "t.model")
    assert e.value.asked == 50_000
    train_tokenizer(TEXTS, TokenizerParams(kind=kind, vocab_size=e.value.largest), tmp_path / "t.model")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_below_the_characters_is_refused(tmp_path, kind):
    text = "".join(chr(0x4E00 + i) for i in range(500)) * 3
    with pytest.raises(ConfigError, match="character_coverage"):
        train_tokenizer(
            [text], TokenizerParams(kind=kind, vocab_size=400, character_coverage=1.0), tmp_path / "t.model"
        )


def test_no_text_and_no_model_are_refused(tmp_path):
    with pytest.raises(DataError, match="no training text"):
        train_tokenizer([], TokenizerParams(), tmp_path / "t.model")
    with pytest.raises(DataError, match="does not exist"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"garbage")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        Tokenizer(tmp_path)


def test_wrong_ids_and_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(ValueError, match="must be in"):
        tokenizer.decode([10**6])
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.encode("a\ud800b")
