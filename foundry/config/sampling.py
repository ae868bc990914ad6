"""The sampling parameters: one table for the engine, the command line, the server, its page and the documentation.

A parameter is a field of `Sampling`; its range, the value that turns it off and its explanation are in its `Parameter`.
`PARAMETERS` lists all of them. What they do is in `foundry/inference/sampling.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal

from foundry.config.errors import ConfigError
from foundry.config.section import short_repr

GREEDY_BELOW = 1e-5  # division of logits by less overflows float32, and would give the most likely token anyway
MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class Parameter:
    """What is known about a sampling parameter.

    Attributes:
        name: as a field of `Sampling`, in the HTTP interface, and with dashes on the command line.
        kind: `number` (float) or `integer` with a range; `ids`: token ids; `words`: sequences of token ids;
            `bias`: pairs of a token id and a number in the range.
        default: of `Sampling`.
        off: the value at which the parameter changes nothing; None if another parameter switches it on.
        low: smallest value; without it if `low_open`.
        high: largest value; None if there is none.
        usual: the range that a slider should offer.
        text: one sentence of explanation.
        chinese: the same sentence in Chinese.
    """

    name: str
    kind: Literal["number", "integer", "ids", "words", "bias"]
    default: Any
    off: Any
    low: float | None
    high: float | None
    low_open: bool
    usual: tuple[float, float] | None
    text: str
    chinese: str

    @property
    def range(self) -> str:
        """The allowed values as text: `(0, 1]`, `at least 0`; empty for token ids."""
        if self.low is None:
            return ""
        if self.high is None:
            return f"at least {self.low:g}"
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}]"

    @property
    def rule(self) -> str:
        """What a value must be, as the end of a sentence."""
        match self.kind:
            case "ids":
                return "a list of token ids"
            case "words":
                return "a list of words, each a list of at least one token id"
            case "bias":
                return f"a mapping of token ids to numbers in {self.range}"
        noun = "an integer" if self.kind == "integer" else "a number"
        return f"{noun} {'of ' if self.high is None else 'in '}{self.range}{self._switch()}"

    def _switch(self) -> str:
        if self.name == "temperature":
            return " (0 = greedy)"
        return "" if self.off is None else f" ({self.off:g} = off)"

    def checked(self, value: Any) -> Any:
        """The value as plain Python numbers in tuples.

        Raises:
            ConfigError: with the rule that the value breaks.
        """
        plain = None
        match self.kind:
            case "number" | "integer":
                plain = self._number(value)
            case "ids":
                plain = _ids(value)
            case "words" if _is_list(value):
                plain = tuple(_ids(word) or None for word in value)
                plain = None if None in plain else plain
            case "bias" if isinstance(value, Mapping) or _is_list(value):
                plain = self._pairs(value.items() if isinstance(value, Mapping) else value)
        if plain is None:
            raise ConfigError(f"{self.name} must be {self.rule}, got {short_repr(value)}")
        return plain

    def _number(self, value: Any) -> float | int | None:
        wanted = Integral if self.kind == "integer" else Real
        if not isinstance(value, wanted) or isinstance(value, bool):
            return None
        inside = self.low < value if self.low_open else self.low <= value
        if not inside or (self.high is not None and value > self.high):
            return None
        return int(value) if self.kind == "integer" else float(value)

    def _pairs(self, pairs: Iterable[Any]) -> tuple[tuple[int, float], ...] | None:
        found = {}
        for pair in pairs:
            if not _is_list(pair) or len(pair) != 2 or not _is_id(pair[0]):
                return None
            value = pair[1]
            if not isinstance(value, Real) or isinstance(value, bool) or not self.low <= value <= self.high:
                return None
            if int(pair[0]) in found:
                raise ConfigError(f"{self.name} must name each token id once, got {int(pair[0])} twice")
            found[int(pair[0])] = float(value)
        return tuple(sorted(found.items()))

    def parsed(self, text: str) -> Any:
        """The value of a text that was typed: `0.8`, `40`, ids as `5,7`, a bias as `5=-2,7=1`.

        Words are typed as `one,another`; they are returned as texts, because only a tokenizer knows their ids.

        Raises:
            ConfigError: with the rule that the text breaks.
        """
        try:
            match self.kind:
                case "number":
                    value = float(text)
                case "integer":
                    value = int(text)
                case "ids":
                    value = [int(part) for part in _parts(text)]
                case "words":
                    return tuple(_parts(text))
                case "bias":
                    pairs = (part.split("=") for part in _parts(text))
                    value = [(int(token), float(bias)) for token, bias in pairs]
        except ValueError:
            raise ConfigError(f"{self.name} must be {self.rule}, got {short_repr(text)}") from None
        return self.checked(value)


def is_integer(value: object) -> bool:
    """Whether a value is an integer of any numeric type; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_id(value: object) -> bool:
    return is_integer(value) and 0 <= value <= MAX_ID


def _is_list(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def _ids(value: object) -> tuple[int, ...] | None:
    if not _is_list(value):
        return None
    ids = tuple(value)
    return tuple(map(int, ids)) if all(map(_is_id, ids)) else None


def _parts(text: str) -> list[str]:
    return text.split(",") if text.strip() else []


def _parameter(
    kind: str,
    default: Any,
    text: str,
    chinese: str,
    *,
    off: Any = None,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    usual: tuple[float, float] | None = None,
) -> Any:
    facts = {"kind": kind, "off": off, "low": low, "high": high, "low_open": low_open, "usual": usual}
    return field(default=default, metadata={**facts, "text": text, "chinese": chinese})


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; by default from the model's own distribution.

    Attributes are described by `PARAMETERS`. Token ids and words may be given as any lists, `logit_bias` as a mapping.

    Raises:
        ConfigError: (a `ValueError`) with the rule that a value breaks.
    """

    temperature: float = _parameter(
        "number", 1.0, off=1.0, low=0.0, high=1000.0, usual=(0.0, 2.0),
        text="Divides the logits: below 1 the likely tokens become likelier, above 1 the unlikely ones; 0 always takes "
        "the most likely token.",
        chinese="用它去除 logits：小于 1 时可能的词元更可能，大于 1 时不太可能的词元更可能；0 总是取最可能的词元。",
    )  # fmt: skip
    top_k: int = _parameter(
        "integer", 0, off=0, low=0, usual=(0, 100),
        text="Keeps the k most likely tokens, and every token that ties with the k-th.",
        chinese="只保留最可能的 k 个词元，以及与第 k 个并列的所有词元。",
    )  # fmt: skip
    top_p: float = _parameter(
        "number", 1.0, off=1.0, low=0.0, high=1.0, low_open=True, usual=(0.05, 1.0),
        text="Keeps the smallest set of most likely tokens whose probability reaches p; the token that reaches it is "
        "kept.",
        chinese="只保留概率之和达到 p 的最小的最可能词元集合；恰好使其达到 p 的词元也保留。",
    )  # fmt: skip
    min_p: float = _parameter(
        "number", 0.0, off=0.0, low=0.0, high=1.0, usual=(0.0, 0.5),
        text="Drops every token that is less likely than this share of the most likely token's probability.",
        chinese="去掉概率低于最可能词元概率的这一比例的所有词元。",
    )  # fmt: skip
    typical_p: float = _parameter(
        "number", 1.0, off=1.0, low=0.0, high=1.0, low_open=True, usual=(0.05, 1.0),
        text="Keeps the tokens whose surprise is closest to the expected one, until their probability reaches this "
        "value.",
        chinese="保留意外程度最接近期望值的词元，直到它们的概率之和达到此值。",
    )  # fmt: skip
    top_n_sigma: float = _parameter(
        "number", 0.0, off=0.0, low=0.0, high=1000.0, usual=(0.0, 5.0),
        text="Keeps the tokens whose logit is at most this many standard deviations of all logits below the largest.",
        chinese="只保留 logit 与最大值相差不超过这么多个标准差（对所有 logits 计算）的词元。",
    )  # fmt: skip
    dynatemp_range: float = _parameter(
        "number", 0.0, off=0.0, low=0.0, high=1000.0, usual=(0.0, 1.0),
        text="Lets the temperature follow the entropy, from temperature minus this value (the model is sure) to "
        "temperature plus this value (it is not).",
        chinese="让温度随熵变化：从 temperature 减此值（模型确定时）到 temperature 加此值（模型不确定时）。",
    )  # fmt: skip
    dynatemp_exponent: float = _parameter(
        "number", 1.0, low=0.0, high=100.0, low_open=True, usual=(0.1, 5.0),
        text="The power to which the entropy, as a share of its largest possible value, is raised for the dynamic "
        "temperature.",
        chinese="计算动态温度时，熵（占最大可能值的比例）的指数。",
    )  # fmt: skip
    top_p_decay: float = _parameter(
        "number", 1.0, off=1.0, low=0.0, high=1.0, low_open=True, usual=(0.5, 1.0),
        text="Multiplies top_p after every token of the output, so that a sentence becomes more certain towards its "
        "end.",
        chinese="每输出一个词元就把 top_p 乘以此值，使句子越往后越确定。",
    )  # fmt: skip
    top_p_min: float = _parameter(
        "number", 1e-6, low=0.0, high=1.0, low_open=True, usual=(0.05, 1.0),
        text="The smallest value that top_p_decay lowers top_p to.",
        chinese="top_p_decay 最多把 top_p 降到此值。",
    )  # fmt: skip
    top_p_reset_ids: tuple[int, ...] = _parameter(
        "ids", (),
        text="Tokens after which top_p has its first value again, for example the end of a sentence.",
        chinese="这些词元（例如句号）之后，top_p 恢复为初始值。",
    )  # fmt: skip
    repetition_penalty: float = _parameter(
        "number", 1.0, off=1.0, low=0.0, high=100.0, low_open=True, usual=(1.0, 2.0),
        text="Divides a positive logit and multiplies a negative one, for every token of the prompt and the output.",
        chinese="对提示和输出中出现过的每个词元：正的 logit 除以此值，负的乘以此值。",
    )  # fmt: skip
    presence_penalty: float = _parameter(
        "number", 0.0, off=0.0, low=-2.0, high=2.0, usual=(-2.0, 2.0),
        text="Is subtracted from the logit of every token that the output already contains.",
        chinese="从输出中已有的每个词元的 logit 中减去此值。",
    )  # fmt: skip
    frequency_penalty: float = _parameter(
        "number", 0.0, off=0.0, low=-2.0, high=2.0, usual=(-2.0, 2.0),
        text="Is subtracted from a token's logit once for every time that the output already contains the token.",
        chinese="词元每在输出中出现一次，就从它的 logit 中减去一次此值。",
    )  # fmt: skip
    logit_bias: tuple[tuple[int, float], ...] = _parameter(
        "bias", (), off=(), low=-100.0, high=100.0,
        text="Is added to the logits of single tokens; 100 almost forces a token, -100 almost forbids it.",
        chinese="加到个别词元的 logit 上；100 几乎强制该词元，-100 几乎禁止它。",
    )  # fmt: skip
    min_tokens: int = _parameter(
        "integer", 0, off=0, low=0, usual=(0, 100),
        text="The end symbol and the stop ids are not allowed before the output has this many tokens.",
        chinese="输出达到这么多词元之前，不允许结束符和停止词元。",
    )  # fmt: skip
    bad_words: tuple[tuple[int, ...], ...] = _parameter(
        "words", (), off=(),
        text="Sequences of tokens that the output must not contain: the last token of one is not allowed after the "
        "others.",
        chinese="输出不得包含的词元序列：当前面的词元已经出现时，不允许序列的最后一个词元。",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for p in PARAMETERS:
            object.__setattr__(self, p.name, p.checked(getattr(self, p.name)))
        if self.greedy and self.dynatemp_range:
            raise ConfigError(
                f"dynatemp_range must be 0 when temperature is 0 (greedy), got {self.dynatemp_range:g}: give a "
                "temperature above 0"
            )
        if self.top_p_decay < 1 and self.top_p_min > self.top_p:
            raise ConfigError(f"top_p_min must be at most top_p ({self.top_p:g}), got {self.top_p_min:g}")

    @property
    def greedy(self) -> bool:
        """Whether always the most likely token is taken."""
        return self.temperature < GREEDY_BELOW

    @property
    def largest_id(self) -> int:
        """The largest token id that a parameter names; -1 if none names any."""
        words = (token for word in self.bad_words for token in word)
        return max((*(token for token, _ in self.logit_bias), *self.top_p_reset_ids, *words), default=-1)


PARAMETERS: tuple[Parameter, ...] = tuple(
    Parameter(name=f.name, default=f.default, **f.metadata) for f in fields(Sampling)
)
PARAMETER = {p.name: p for p in PARAMETERS}

# What `foundry generate` begins with: the unlikely tokens of a small model make poor reading.
READING = Sampling(temperature=0.8, top_p=0.95)
# What `foundry chat` begins with: an answer is right or wrong, and the likely words of a small model are its best ones.
ANSWERING = Sampling(temperature=0.3, top_p=0.9)
