"""llama.cpp's answers about one GGUF file, in a process of its own: a bad file makes llama.cpp abort, not raise.

Run as a script: `python llamacpp_child.py REQUEST.json ANSWER.json`; needs nothing of this project. The engine is the
server in the `xllamacpp` wheel, on a loopback port that the system picks, with keys and values in float32: the default,
float16, moves logits by 1e-3.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any


def main(request_path: str, answer_path: str) -> None:
    with open(request_path, encoding="utf-8") as f:
        request = json.load(f)
    server, url = _serve(request)
    answer = {
        "ids": [_tokenize(url, text) for text in request["texts"]],
        "log_probs": [
            _log_probs(url, context, request["vocab_size"], request["plain"]) for context in request["contexts"]
        ],
        "greedy": [_greedy(url, ids, n, request["barred"]) for ids, n in request["prompts"]],
        "settings": _settings(url, request["chat"], request["pieces"], request["possible_ends"]),
    }
    with open(answer_path, "w", encoding="utf-8") as f:
        json.dump(answer, f)
    del server


def _serve(request: dict[str, Any]) -> tuple[Any, str]:
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = request["model"]
    p.hostnames, p.port = ["127.0.0.1"], 0
    p.n_ctx = request["context"] + 8
    p.n_parallel, p.warmup, p.fit_params, p.ui = 1, False, False, False
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = request["threads"]
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(p)
    return server, server.listening_address


def _settings(url: str, chat: list[dict[str, str]], pieces: list[int], possible_ends: list[int]) -> dict[str, Any]:
    """What the server reports about the file: its settings, a conversation as text, pieces as text, tokens that end a text.

    Args:
        possible_ends: tokens that are tried: each is forced, and ends the text or not.
    """
    ends = []
    for token in possible_ends:
        body = {
            "prompt": [token],
            "n_predict": 2,
            "temperature": 0,
            "cache_prompt": False,
            "logit_bias": [[token, 1e6]],
        }
        if _post(url, "/completion", body)["stop_type"] == "eos":
            ends.append(token)
    return {
        "props": _get(url, "/props"),
        "meta": _get(url, "/v1/models")["data"][0]["meta"],
        "chat": _post(url, "/apply-template", {"messages": chat})["prompt"],
        "pieces": _post(url, "/detokenize", {"tokens": pieces})["content"],
        "ends": sorted(ends),
    }


def _get(url: str, path: str) -> Any:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url + path) as f:
        return json.load(f)


def _post(url: str, path: str, body: dict[str, Any]) -> Any:
    data = json.dumps(body).encode()
    call = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(call) as f:
        return json.load(f)


def _tokenize(url: str, text: str) -> list[int]:
    return _post(url, "/tokenize", {"content": text, "add_special": True, "parse_special": False})["tokens"]


def _log_probs(url: str, ids: list[int], vocab_size: int, plain: int) -> list[float]:
    """Of every token after the last of `ids`, before any sampling.

    The server tells them beside a token that it can show: not the end, not a part of a character. The bias makes it choose
    `plain`, and the probabilities are those without the bias.
    """
    body = {
        "prompt": ids, "n_predict": 1, "n_probs": vocab_size, "temperature": 0, "cache_prompt": False,
        "logit_bias": [[plain, 1e6]],
    }  # fmt: skip
    (position,) = _post(url, "/completion", body)["completion_probabilities"]
    out = [float("-inf")] * vocab_size
    for entry in position["top_logprobs"]:
        out[entry["id"]] = entry["logprob"]
    return out


def _greedy(url: str, ids: list[int], n: int, barred: list[int]) -> list[int]:
    body = {
        "prompt": ids, "n_predict": n, "temperature": 0, "cache_prompt": False, "return_tokens": True,
        "logit_bias": [[token, False] for token in barred],
    }  # fmt: skip
    return _post(url, "/completion", body)["tokens"]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
    sys.stdout.flush()
    os._exit(0)  # the server's threads need no farewell
