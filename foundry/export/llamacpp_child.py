"""llama.cpp's answers about one GGUF file, in a process of its own: a bad file makes llama.cpp abort, not raise.

Run as a script: `python llamacpp_child.py REQUEST.json ANSWER.json`; imports nothing of this project. The engine is the
server in the `xllamacpp` wheel, on a loopback port that the system picks, with keys and values in float32: the default,
float16, moves logits by 1e-3.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue, and how many tokens to add."""

    ids: list[int]
    new_tokens: int


@dataclass(frozen=True)
class Request:
    """What the child is asked about a file.

    Attributes:
        model: absolute path of the GGUF file.
        context: positions that the model has.
        texts: to be tokenized.
        contexts: token ids after which the log-probabilities of the whole vocabulary are wanted.
        prompts: to be continued greedily.
        barred: tokens that must not be chosen.
        chat: a conversation, to be rendered by the file's chat template.
        conversations: to be rendered and tokenized as the server does it for a client.
        pieces: token ids, to be decoded as one text.
        possible_ends: tokens that are forced one by one, to see whether they end a text.
        plain: a token that stands for whole characters and does not end a text.
    """

    model: str
    context: int
    vocab_size: int
    threads: int
    texts: list[str]
    contexts: list[list[int]]
    prompts: list[Prompt]
    barred: list[int]
    chat: list[dict[str, str]]
    conversations: list[list[dict[str, str]]]
    pieces: list[int]
    possible_ends: list[int]
    plain: int

    @classmethod
    def from_json(cls, text: str) -> Request:
        content = json.loads(text)
        return cls(**{**content, "prompts": [Prompt(**p) for p in content["prompts"]]})


@dataclass(frozen=True)
class ServerSettings:
    """What the server reports about the file.

    Attributes:
        props, meta: the server's own JSON (`/props`, `/v1/models`).
        chat: the conversation as text.
        pieces: the pieces as text.
        ends: those of `possible_ends` that end a text, sorted.
    """

    props: dict[str, Any]
    meta: dict[str, Any]
    chat: str
    pieces: str
    ends: list[int]


@dataclass(frozen=True)
class Answer:
    """The answers, in the order of what the request asks; `log_probs` are natural logarithms."""

    ids: list[list[int]]
    conversations: list[list[int]]
    log_probs: list[list[float]]
    greedy: list[list[int]]
    settings: ServerSettings

    @classmethod
    def from_json(cls, text: str) -> Answer:
        content = json.loads(text)
        return cls(**{**content, "settings": ServerSettings(**content["settings"])})


def main(request_path: str, answer_path: str) -> None:
    with open(request_path, encoding="utf-8") as f:
        request = Request.from_json(f.read())
    server, url = _serve(request)
    answer = Answer(
        ids=[_tokenize(url, text) for text in request.texts],
        conversations=[_conversation(url, turns) for turns in request.conversations],
        log_probs=[_log_probs(url, context, request.vocab_size, request.plain) for context in request.contexts],
        greedy=[_greedy(url, prompt, request.barred) for prompt in request.prompts],
        settings=_settings(url, request),
    )
    with open(answer_path, "w", encoding="utf-8") as f:
        json.dump(asdict(answer), f)
    del server


def _serve(request: Request) -> tuple[Any, str]:
    """(the server, which must stay referenced while it is used; its address)."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = request.model
    p.hostnames, p.port = ["127.0.0.1"], 0
    p.n_ctx = request.context + 8
    p.n_parallel, p.warmup, p.fit_params, p.ui = 1, False, False, False
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = request.threads
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(p)
    return server, server.listening_address


def _settings(url: str, request: Request) -> ServerSettings:
    ends = []
    for token in request.possible_ends:
        forced = {"logit_bias": [[token, 1e6]], "n_predict": 2}
        if _complete(url, [token], **forced)["stop_type"] == "eos":
            ends.append(token)
    return ServerSettings(
        props=_get(url, "/props"),
        meta=_get(url, "/v1/models")["data"][0]["meta"],
        chat=_rendered(url, request.chat),
        pieces=_post(url, "/detokenize", {"tokens": request.pieces})["content"],
        ends=sorted(ends),
    )


def _tokenize(url: str, text: str) -> list[int]:
    return _post(url, "/tokenize", {"content": text, "add_special": True, "parse_special": False})["tokens"]


def _rendered(url: str, turns: list[dict[str, str]]) -> str:
    return _post(url, "/apply-template", {"messages": turns})["prompt"]


def _conversation(url: str, turns: list[dict[str, str]]) -> list[int]:
    content = {"content": _rendered(url, turns), "add_special": True, "parse_special": True}
    return _post(url, "/tokenize", content)["tokens"]


def _log_probs(url: str, ids: list[int], vocab_size: int, plain: int) -> list[float]:
    """Of every token after the last of `ids`, before any sampling.

    The server reports them only beside a token that it can show: not the end, not a part of a character. The bias makes
    it choose `plain`, and the probabilities are those without the bias.
    """
    completion = _complete(url, ids, n_predict=1, n_probs=vocab_size, logit_bias=[[plain, 1e6]])
    (position,) = completion["completion_probabilities"]
    out = [float("-inf")] * vocab_size
    for entry in position["top_logprobs"]:
        out[entry["id"]] = entry["logprob"]
    return out


def _greedy(url: str, prompt: Prompt, barred: list[int]) -> list[int]:
    bias = [[token, False] for token in barred]
    return _complete(url, prompt.ids, n_predict=prompt.new_tokens, return_tokens=True, logit_bias=bias)["tokens"]


def _complete(url: str, ids: list[int], **options: Any) -> dict[str, Any]:
    """The server's completion of token ids, greedy and without its prompt cache."""
    return _post(url, "/completion", {"prompt": ids, "temperature": 0, "cache_prompt": False, **options})


def _get(url: str, path: str) -> Any:
    return _call(url + path)


def _post(url: str, path: str, body: dict[str, Any]) -> Any:
    data = json.dumps(body).encode()
    return _call(urllib.request.Request(url + path, data, {"Content-Type": "application/json"}))


def _call(request: str | urllib.request.Request) -> Any:
    """The JSON that a server on loopback answers; proxies of the environment are not used."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as f:
        return json.load(f)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # the server's threads do not have to be stopped in order
