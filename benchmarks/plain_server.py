"""The loop that a user of transformers writes: FastAPI, one model in bfloat16, one `generate` at a time.

    python -m benchmarks.plain_server --size L --port PORT --tokenizer FILE

It answers `POST /v1/completions` without streaming.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.throughput import SIZES, llama
from foundry.config import ModelConfig
from foundry.tokenizers import Tokenizer


class Completion(BaseModel):
    """A request; other options are ignored."""

    prompt: str
    max_tokens: int = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = Tokenizer(args.tokenizer)
    cfg = ModelConfig(vocab_size=tokenizer.vocab_size, **SIZES[args.size][0])
    model, turn, app = llama(cfg).bfloat16().eval(), threading.Lock(), FastAPI()

    @app.get("/ready")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/v1/completions")
    def complete(request: Completion) -> dict:
        ids = torch.tensor([tokenizer.encode(request.prompt, bos=True)])
        n = request.max_tokens
        options = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "pad_token_id": 0}
        with turn, torch.inference_mode():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :]
        return {"choices": [{"text": tokenizer.decode(made.tolist()), "finish_reason": "length"}]}

    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
