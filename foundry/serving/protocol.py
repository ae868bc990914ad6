"""The bodies of requests and responses: the OpenAI API, and what vLLM's users expect beside it.

A field of a request is known and used, or refused by name. Sampling parameters are those of
`foundry.config.sampling.PARAMETERS`, checked there. A field that is null counts as absent, as in the OpenAI API.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from foundry.config.sampling import PARAMETER
from foundry.serving.errors import ApiError, invalid, shown

SEEDS = 2**63

# Options of the official client that are not supported: the values that mean "off" are accepted.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "this model writes text only"),
    "function_call": (("none",), "this model has not learnt to call functions"),
    "functions": ((), "this model has not learnt to call functions"),
    "metadata": ((), "answers are not stored"),
    "modalities": ((["text"],), "this model writes text only"),
    "moderation": ((), "there is no moderation"),
    "parallel_tool_calls": ((), "this model has not learnt to call tools"),
    "prediction": ((), "use the server's speculative decoding, which needs no option"),
    "prompt_cache_key": ((), "the cache finds common beginnings of prompts by itself"),
    "prompt_cache_options": ((), "the cache finds common beginnings of prompts by itself"),
    "prompt_cache_retention": ((), "the cache finds common beginnings of prompts by itself"),
    "reasoning_effort": (("none",), "this model does not reason before it answers"),
    "service_tier": (("auto", "default"), "there is one tier"),
    "store": ((False,), "answers are not stored"),
    "suffix": ((), "this model only continues a text and does not fill gaps"),
    "tool_choice": (("none",), "this model has not learnt to call tools"),
    "tools": ((), "this model has not learnt to call tools"),
    "verbosity": ((), "state the wanted length in the prompt, or set max_tokens"),
    "web_search_options": ((), "this server does not search the web"),
}


class In(BaseModel):
    """The base of what a client sends."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True)


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{message}", {"message": message})


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(i) is int for i in value)


def _prompts(value: Any) -> Any:
    """One prompt or several, each text or token ids, as a tuple of them."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(p, str) for p in value):
            return tuple(value)
        if _is_ids(value):
            return (tuple(value),)
        if all(_is_ids(p) for p in value):
            return tuple(map(tuple, value))
    raise _wrong("must be a text, a list of texts, a list of token ids, or a list of lists of token ids")


def _strings(value: Any) -> Any:
    """One text or several as a tuple."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(s, str) for s in value):
        return tuple(value)
    raise _wrong("must be a text or a list of texts")


def _ids(value: Any) -> Any:
    if not _is_ids(value):
        raise _wrong("must be a list of token ids")
    return tuple(value)


def _content(value: Any) -> Any:
    """The text of a message: a text, or parts of type `text`, which are joined as they are."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise _wrong("must be a text or a list of parts of type text")
    texts = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str) or len(part) > 2:
            seen = f"part {i} is of type {shown(kind)}" if isinstance(kind, str) and kind != "text" else f"part {i}"
            raise _wrong(f'{seen}: only {{"type": "text", "text": "…"}} can be read by this model')
        texts.append(part["text"])
    return "".join(texts)


def _logit_bias(value: Any) -> Any:
    """JSON has only texts as keys: the ids are converted."""
    if not isinstance(value, dict):
        return value
    try:
        return {int(k) if k.isascii() and k.isdecimal() and len(k) < 12 else -1: v for k, v in value.items()}
    except ValueError:
        return value


# A body may have them in simpler forms, which is what `/openapi.json` describes.
_TEXT, _IDS = {"type": "string"}, {"type": "array", "items": {"type": "integer"}}
_TEXTS = {"type": "array", "items": _TEXT}
_PART = {"type": "object", "properties": {"type": {"const": "text"}, "text": _TEXT}, "required": ["type", "text"]}
_PROMPTS = {"anyOf": [_TEXT, _TEXTS, _IDS, {"type": "array", "items": _IDS}]}
Prompts = Annotated[
    tuple[str | tuple[int, ...], ...], BeforeValidator(_prompts), WithJsonSchema(_PROMPTS, mode="validation")
]
Strings = Annotated[
    tuple[str, ...], BeforeValidator(_strings), WithJsonSchema({"anyOf": [_TEXT, _TEXTS]}, mode="validation")
]
Content = Annotated[
    str,
    BeforeValidator(_content),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _PART}]}, mode="validation"),
]
Ids = Annotated[tuple[int, ...], BeforeValidator(_ids)]


class StreamOptions(In):
    """How a stream ends."""

    include_usage: bool = Field(False, description="send the usage in a last chunk")
    include_obfuscation: Literal[False] = Field(False, description="only false: chunks are not padded")


class JsonSchema(In):
    name: str = Field(max_length=64)
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = Field(None, description="the schema is always followed exactly")


class ResponseFormat(In):
    """In which language the answer is."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Options(In):
    """What both kinds of requests have in common."""

    model: str | None = Field(None, max_length=512, description="as `/v1/models` lists it; absent: the current one")
    n: int = Field(1, ge=1, description="answers per prompt; answer i has the seed seed + i")
    stop: Strings = Field((), description="texts that end the answer and are not part of it")
    stop_token_ids: Ids = Field((), description="tokens that end the answer and are not part of it")
    seed: int | None = Field(
        None, ge=-SEEDS, lt=SEEDS, description="repeats an answer; absent: a fresh one is drawn and returned"
    )
    stream: bool = Field(False, description="send the answer in parts, as server-sent events")
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = Field(None, description="JSON, or JSON that follows a schema")
    past_context: Literal["stop", "slide"] = Field(
        "stop",
        description="at a full context: stop; or slide, which reads the newer half of the text again and continues",
    )
    user: str | None = Field(None, max_length=512, description="identifies your user; is recorded if recording is on")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(Options):
    """The body of `/v1/completions`, sampling parameters aside."""

    prompt: Prompts = Field(("",), description="what is continued: texts, or token ids as they are")
    max_tokens: int = Field(16, ge=0, description="largest number of new tokens per answer")
    best_of: int | None = Field(
        None, ge=1, description="generate so many answers and return the n with the highest mean log-probability"
    )
    echo: bool = Field(False, description="begin the answer with the prompt")
    logprobs: int | None = Field(None, ge=0, description="log-probabilities of the tokens and so many alternatives")


class ChatMessage(In):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class ChatRequest(Options):
    """The body of `/v1/chat/completions`, sampling parameters aside."""

    messages: Annotated[list[ChatMessage], FailFast()] = Field(min_length=1, description="the conversation so far")
    max_completion_tokens: int | None = Field(None, ge=1, description="largest number of new tokens per answer")
    max_tokens: int | None = Field(None, ge=1, description="the former name of max_completion_tokens")
    logprobs: bool = Field(False, description="return the log-probabilities of the tokens")
    top_logprobs: int | None = Field(None, ge=0, description="alternatives per token; needs logprobs")
    continue_final_message: bool = Field(False, description="continue the last message, not answer it")
    truncation: Literal["disabled", "auto"] = Field(
        "disabled",
        description="auto: leave out the oldest turns of a conversation that is too long for the context, but not the "
        "system message; disabled: refuse it",
    )
    safety_identifier: str | None = Field(None, max_length=512, description="as user")


class TokenizeRequest(In):
    """The body of `/tokenize`: a text, or a conversation as it is encoded for the model."""

    model: str | None = Field(None, max_length=512)
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], FailFast()] = Field([], description="a conversation")
    add_special_tokens: bool = Field(True, description="put the begin symbol before a text")
    add_generation_prompt: bool = Field(True, description="end a conversation with the beginning of the answer")


class DetokenizeRequest(In):
    """The body of `/detokenize`."""

    model: str | None = Field(None, max_length=512)
    tokens: Ids


class FeedbackRequest(In):
    """The body of `/v1/feedback`: what a person thought of an answer."""

    id: str = Field(min_length=1, max_length=128, description="of the response")
    index: int = Field(0, ge=0, le=10_000, description="of the choice in the response")
    rating: Literal[-1, 0, 1] = Field(description="1: good, -1: bad, 0: takes an earlier rating back")
    comment: str | None = Field(None, max_length=4096)


T = TypeVar("T", bound=In)


def parse(kind: type[T], body: Mapping[str, Any]) -> tuple[T, dict[str, Any]]:
    """A request and its sampling parameters, which are not checked yet.

    Raises:
        ApiError: 400 that names the first field that is wrong, unknown or not supported.
    """
    fields = {k: v for k, v in body.items() if v is not None}
    sampling: dict[str, Any] = {}
    if issubclass(kind, Options):
        sampling = {k: fields.pop(k) for k in tuple(fields) if k in PARAMETER}
        if "logit_bias" in sampling:
            sampling["logit_bias"] = _logit_bias(sampling["logit_bias"])
        for name in tuple(fields):
            if name in REFUSED and name not in kind.model_fields:
                accepted, why = REFUSED[name]
                if not any(type(fields[name]) is type(a) and fields[name] == a for a in accepted):
                    raise invalid(f"{name} is not supported: {why}", name, "unsupported_parameter")
                del fields[name]
    for name in fields:  # not left to pydantic, which would collect every one of them
        if name not in kind.model_fields:
            raise invalid(f"unknown field: {shown(name)}", name[:200], "unknown_parameter")
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [_without_nulls(m) for m in messages]
    try:
        return kind.model_validate(fields), sampling
    except ValidationError as e:
        raise _first(e) from None


def _without_nulls(message: Any) -> Any:
    """A message as the official client returns it has many fields that are null."""
    if not isinstance(message, dict):
        return message
    return {k: v for k, v in message.items() if v is not None}


def _first(error: ValidationError) -> ApiError:
    """The first mistake that pydantic found as an error of the API."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".") or "body"
    if len(where) > 200:
        where = where[:199] + "…"
    match first["type"]:
        case "extra_forbidden":
            return invalid(f"unknown field: {where}", where, "unknown_parameter")
        case "missing":
            return invalid(f"{where} is missing", where, "missing_required_parameter")
        case "wrong":
            return invalid(f"{where} {first['msg']}", where, "invalid_value")
    return invalid(f"{where}: {first['msg']}", where, "invalid_value")


# Responses


class PromptDetails(_Out):
    cached_tokens: int


class CompletionDetails(_Out):
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(_Out):
    """Tokens of a request; a prompt counts once however many answers it gets."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


Reason = Literal["stop", "length"]


class Choice(_Out):
    """What every choice of a response has.

    Attributes:
        stop_reason: the stop text or id that ended the answer, or `timeout`.
        seed: with n = 1, the same request with it has this answer.
    """

    index: int
    finish_reason: Reason | None = None
    stop_reason: str | int | None = None
    seed: int


class TextLogprobs(_Out):
    """Log-probabilities of a completion, one entry per token; `text_offset` counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Choice):
    text: str
    logprobs: TextLogprobs | None = None


class TopLogprob(_Out):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Out):
    content: list[TokenLogprob]
    refusal: None = None


class ChatAnswer(_Out):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Choice):
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None


class ChatDelta(_Out):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Choice):
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
