"""From a request of the API to requests of the engine: limits, prompts as ids, seeds. Runs outside the event loop."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foundry.config import ConfigError, MissingPackageError
from foundry.config.sampling import PARAMETER, Sampling
from foundry.config.serving import Serving
from foundry.inference.penalties import forms_of
from foundry.inference.request import Constraint, Request
from foundry.serving.errors import ApiError, invalid
from foundry.serving.protocol import SEEDS, Options, ResponseFormat
from foundry.serving.version import Version

DRAWN = 2**32 - 2**20  # seeds that are drawn: llama.cpp takes them, and those of further answers, too


@dataclass(frozen=True)
class Job:
    """One answer that is generated.

    Attributes:
        prompt: of which prompt, counted from 0.
    """

    prompt: int
    seed: int
    request: Request


@dataclass(frozen=True)
class Plan:
    """What a request of the API needs from the engine.

    Attributes:
        seed: of the first answer; job i has the seed `seed` + i.
        prompt_tokens: of all prompts, each counted once.
        most_tokens: that the request can use.
        dropped: messages of a conversation that were left out; None if the client did not allow it.
    """

    jobs: tuple[Job, ...]
    seed: int
    prompt_tokens: int
    most_tokens: int
    dropped: int | None


@dataclass(frozen=True)
class Wanted:
    """What the two kinds of requests say in their own ways.

    Attributes:
        param: the field that has the prompts.
        prompts: ids of each prompt, with their begin symbol.
        answers: that are generated for each.
        max_tokens: of each answer; None: as many as fit.
        explicit: whether the client named `max_tokens`.
        max_name: what the client calls it.
        stop_ids: besides those that the client names.
        logprobs: alternatives for each token of the answer; None: no log-probabilities.
        prompt_logprobs: the same for those of the prompt.
        dropped: as in `Plan`.
    """

    param: str
    prompts: Sequence[tuple[int, ...]]
    answers: int
    max_tokens: int | None
    explicit: bool
    max_name: str
    stop_ids: tuple[int, ...]
    logprobs: int | None
    prompt_logprobs: int | None = None
    dropped: int | None = None


def check_characters(texts: Sequence[str], config: Serving, param: str) -> None:
    """Refuses prompts that are too long to be tokenised.

    Raises:
        ApiError: 400.
    """
    if (n := sum(map(len, texts))) > config.max_prompt_chars:
        raise invalid(
            f"{param} has {n} characters, at most {config.max_prompt_chars} are allowed (serving.max_prompt_chars)",
            param,
            "string_above_max_length",
        )


def at_most(value: int, limit: int, param: str, key: str) -> None:
    """Refuses a number above a limit of the server.

    Raises:
        ApiError: 400 that names both.
    """
    if value > limit:
        raise invalid(f"{param} must be at most {limit} (serving.{key}), got {value}", param, "above_maximum")


def plan(
    version: Version, asked: Options, sampling: dict[str, Any], wanted: Wanted, config: Serving, deadline: float
) -> Plan:
    """The engine's requests for a request of the API.

    Args:
        sampling: parameters as the client gave them.
        deadline: the value of `time.monotonic()` at which answers end.

    Raises:
        ApiError: 400 that names the field.
    """
    _check_limits(asked, sampling, wanted, config)
    how = _sampling(version, sampling)
    stop_ids = (*wanted.stop_ids, *asked.stop_token_ids)
    _in_vocabulary(asked.stop_token_ids, version, "stop_token_ids")
    constraint = _constraint(version, asked.response_format, config)
    seed = secrets.randbelow(DRAWN) if asked.seed is None else asked.seed % SEEDS
    jobs = []
    most = 0
    for number, ids in enumerate(wanted.prompts):
        tokens = _room(len(ids), version, asked, wanted, config)
        if how.min_tokens > tokens:
            raise invalid(
                f"min_tokens must be at most {tokens}, which an answer can have, got {how.min_tokens}", "min_tokens"
            )
        most += len(ids) + wanted.answers * tokens
        for _ in range(wanted.answers):
            own = (seed + len(jobs)) % SEEDS
            request = Request(
                ids=ids,
                sampling=how,
                max_tokens=tokens,
                seed=own,
                stop=asked.stop,
                stop_ids=stop_ids,
                logprobs=wanted.logprobs,
                prompt_logprobs=wanted.prompt_logprobs,
                past_context=asked.past_context,
                constraint=constraint,
                deadline=deadline,
            )
            jobs.append(Job(number, own, request))
    stats = version.backend.stats()
    if len(jobs) > (places := stats.slots + stats.queue):
        raise invalid(f"the request needs {len(jobs)} answers and this server has {places} places", "n")
    return Plan(tuple(jobs), seed, sum(map(len, wanted.prompts)), most, wanted.dropped)


def _check_limits(asked: Options, sampling: dict[str, Any], wanted: Wanted, config: Serving) -> None:
    at_most(asked.n, config.max_n, "n", "max_n")
    for name, values in (("stop", asked.stop), ("stop_token_ids", asked.stop_token_ids)):
        if len(values) > config.max_stop:
            raise invalid(
                f"{name} has {len(values)} entries, at most {config.max_stop} are allowed (serving.max_stop)", name
            )
    for text in asked.stop:
        if not text:
            raise invalid("stop has an empty text: every text contains it", "stop")
        if len(text) > config.max_stop_chars:
            raise invalid(
                f"stop has a text of {len(text)} characters, at most {config.max_stop_chars} are allowed "
                "(serving.max_stop_chars)",
                "stop",
            )
    for name in ("logit_bias", "bad_words", "top_p_reset_ids"):
        value = sampling.get(name, ())
        if isinstance(value, (dict, list)) and len(value) > config.max_logit_bias:
            raise invalid(
                f"{name} has {len(value)} entries, at most {config.max_logit_bias} are allowed "
                "(serving.max_logit_bias)",
                name,
            )
    words = sampling.get("bad_words")
    for word in words if isinstance(words, list) else ():
        if isinstance(word, (str, list)) and len(word) > config.max_stop_chars:
            raise invalid(
                f"bad_words has a word of length {len(word)}, at most {config.max_stop_chars} is allowed "
                "(serving.max_stop_chars)",
                "bad_words",
            )
    for name, value in (("logprobs", wanted.logprobs), ("logprobs", wanted.prompt_logprobs)):
        at_most(value or 0, config.max_logprobs, name, "max_logprobs")


def _sampling(version: Version, given: dict[str, Any]) -> Sampling:
    values = dict(given)
    if isinstance(words := values.get("bad_words"), list):
        values["bad_words"] = _words(version, words)
    for name, value in values.items():
        try:
            values[name] = PARAMETER[name].checked(value)
        except ConfigError as e:
            raise invalid(str(e), name, "invalid_value") from None
    for name in ("logit_bias", "bad_words", "top_p_reset_ids"):
        one = Sampling(**{name: values[name]}) if name in values else Sampling()
        _in_vocabulary([one.largest_id] if one.largest_id >= 0 else [], version, name)
    try:
        return Sampling(**values)
    except ConfigError as e:
        raise invalid(str(e)) from None


def _words(version: Version, words: list[Any]) -> list[Any]:
    """Words that are texts as ids."""
    found: list[Any] = []
    for word in words:
        found += forms_of(word, version.tokenizer) if isinstance(word, str) else [word]
    return found


def _in_vocabulary(ids: Sequence[int], version: Version, param: str) -> None:
    size = version.facts.vocabulary
    if wrong := [i for i in ids if not 0 <= i < size]:
        raise invalid(f"{param}: token ids must be in [0, {size}), got {wrong[0]}", param, "invalid_value")


def check_ids(prompts: Sequence[tuple[int, ...]], version: Version, param: str) -> None:
    """Refuses prompts without a token, and ids outside the vocabulary.

    Raises:
        ApiError: 400.
    """
    for ids in prompts:
        if not ids:
            raise invalid(f"{param} has a prompt without a token", param, "invalid_value")
        _in_vocabulary(ids, version, param)


def _room(prompt: int, version: Version, asked: Options, wanted: Wanted, config: Serving) -> int:
    """How many new tokens an answer may have."""
    context = version.facts.context_length
    most = context if wanted.max_tokens == 0 else context - 1
    if config.max_prompt_tokens and prompt > config.max_prompt_tokens:
        raise _too_long(
            f"the prompt has {prompt} tokens, at most {config.max_prompt_tokens} are allowed "
            "(serving.max_prompt_tokens)",
            wanted,
        )
    if prompt > most:
        raise _too_long(
            f"the context of this model has {context} tokens, and the prompt has {prompt}: shorten it, so that there "
            "is room for an answer",
            wanted,
        )
    tokens = config.max_new_tokens if wanted.max_tokens is None else wanted.max_tokens
    if wanted.explicit:
        at_most(tokens, config.max_new_tokens, wanted.max_name, "max_new_tokens")
    if tokens <= context - prompt or (asked.past_context == "slide" and wanted.explicit):
        return tokens
    if wanted.explicit:
        raise _too_long(
            f"the context of this model has {context} tokens; {prompt} of the prompt and {tokens} of the answer are "
            f"{prompt + tokens}: lower {wanted.max_name}, or set past_context to slide",
            wanted,
        )
    return context - prompt


def _too_long(message: str, wanted: Wanted) -> ApiError:
    return invalid(message, wanted.param, "context_length_exceeded")


def _constraint(version: Version, wanted: ResponseFormat | None, config: Serving) -> Constraint | None:
    if wanted is None or wanted.type == "text":
        return None
    try:
        if wanted.type == "json_object":
            return version.grammars.json_object()
        if wanted.json_schema is None:
            raise invalid("response_format.json_schema is missing", "response_format", "missing_required_parameter")
        schema = json.dumps(wanted.json_schema.schema_, ensure_ascii=False)
        if (size := len(schema.encode())) > config.max_schema_bytes:
            limit = f"at most {config.max_schema_bytes} are allowed (serving.max_schema_bytes)"
            raise invalid(f"response_format has a schema of {size} bytes, {limit}", "response_format", "above_maximum")
        return version.grammars.json_schema(schema)
    except MissingPackageError:
        why = "response_format is not supported: this server was installed without a grammar library"
        raise invalid(why, "response_format", "unsupported_parameter") from None
    except ConfigError as e:
        raise invalid(f"response_format: {e}", "response_format", "invalid_value") from None
