"""llama.cpp's server in a process of its own, because a bad file makes llama.cpp abort, not raise.

Run as a script: `python llamacpp_child.py SETTINGS`, with the fields of `Settings` as JSON; imports nothing of this
project. It prints its address as JSON when the model is loaded, and ends when its standard input is closed, which
happens however its parent dies.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What the server is started with.

    Attributes:
        model: absolute path of the GGUF file.
        context: positions of a slot.
        slots: answers at the same time.
        exact: keys and values in float32 instead of float16, which moves logits by 1e-3.
    """

    model: str
    context: int
    slots: int
    threads: int
    exact: bool


def main(settings: Settings) -> None:
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = settings.model
    p.hostnames, p.port = ["127.0.0.1"], 0
    p.n_ctx, p.n_parallel = settings.context * settings.slots, settings.slots
    p.warmup, p.fit_params, p.ui = False, False, False
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = settings.threads
    if settings.exact:
        p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(p)
    print(json.dumps({"address": server.listening_address}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
    os._exit(0)  # the server's threads do not have to be stopped in order
