"""The section `serving` of `params.yaml`: what `foundry serve` loads, its limits, and where it keeps what it records.

These are execution keys: no stage depends on them, and changing one reruns nothing.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from foundry.config.section import Section, short_repr


class Serving(Section):
    """The server of `foundry serve`."""

    # what is served
    model: str | None = Field(
        None,
        min_length=1,
        description="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder (export or trained model); null: the "
        "champion of export.model_name, or artifacts/export if no version is registered",
    )
    backend: Literal["foundry", "llamacpp"] = Field(
        "foundry", description="foundry: the engine of this project; llamacpp: the GGUF file of an export in llama.cpp"
    )
    weights: Literal["float32", "bfloat16", "int8", "int4"] = Field(
        "float32", description="number format of the matrices; float32 gives exactly the model that was evaluated"
    )
    speculation: Literal["off", "ngram", "draft"] = Field(
        "off",
        description="guesses of the next tokens, which change no token; ngram: from the text so far; draft: by a "
        "smaller model",
    )
    draft: str | None = Field(
        None,
        min_length=1,
        description="folder of the export that guesses (speculation: draft), with the same tokenizer",
    )
    max_running: int = Field(32, ge=1, le=4096, description="requests that generate at the same time")
    poll_seconds: float = Field(
        5.0,
        ge=0,
        le=86_400,
        description="seconds between two looks at the registry's alias; 0: a model is never replaced",
    )
    # address
    host: str = Field(
        "127.0.0.1", min_length=1, description="address that is listened on; one that is not loopback needs a key"
    )
    port: int = Field(8000, ge=0, le=65_535, description="port that is listened on; 0: any free one")
    keys_file: str | None = Field(
        None, min_length=1, description="file of API keys; null: those of FOUNDRY_API_KEYS, or none"
    )
    cors_origins: list[str] = Field(
        default_factory=list, description="origins (https://example.org) whose pages may call the server; empty: none"
    )
    # limits of a request
    max_body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30, description="bytes of a request's body")
    max_json_depth: int = Field(32, ge=4, le=200, description="levels of nested lists and objects in a body")
    max_prompts: int = Field(32, ge=1, le=10_000, description="prompts in one request")
    max_prompt_chars: int = Field(
        400_000, ge=1, le=1 << 30, description="characters of all prompts or messages of a request, before tokenising"
    )
    max_prompt_tokens: int = Field(
        0, ge=0, le=1 << 24, description="tokens of a prompt; 0: as many as leave room for one more in the context"
    )
    max_new_tokens: int = Field(4096, ge=1, le=1 << 24, description="tokens that are generated for one answer")
    max_n: int = Field(16, ge=1, le=1024, description="answers per prompt (n and best_of)")
    max_stop: int = Field(16, ge=1, le=1024, description="stop strings of a request, and its stop ids")
    max_stop_chars: int = Field(256, ge=1, le=100_000, description="characters of a stop string")
    max_logprobs: int = Field(20, ge=0, le=1024, description="alternatives per token in log-probabilities")
    max_logit_bias: int = Field(1024, ge=0, le=1 << 20, description="tokens with a bias, and bad words, of a request")
    max_schema_bytes: int = Field(64 << 10, ge=2, le=1 << 24, description="bytes of a JSON schema in response_format")
    request_seconds: float = Field(
        600.0, gt=0, le=86_400, description="wall-clock time of a request from its arrival to the end of its answer"
    )
    # limits of the server
    max_queue: int = Field(
        128, ge=0, le=100_000, description="answers that wait for a place; beyond them a request gets a 429"
    )
    max_connections: int = Field(
        1024, ge=1, le=1_000_000, description="open connections; beyond them a new one gets a 503 and is closed"
    )
    max_header_bytes: int = Field(32 << 10, ge=1024, le=1 << 20, description="bytes of a request's line and headers")
    header_seconds: float = Field(10.0, gt=0, le=3600, description="time in which the headers of a request must arrive")
    body_seconds: float = Field(30.0, gt=0, le=3600, description="time in which the body of a request must arrive")
    idle_seconds: float = Field(30.0, gt=0, le=3600, description="time after which an unused connection is closed")
    write_seconds: float = Field(
        30.0, gt=0, le=3600, description="time after which a client that reads nothing of its answer is disconnected"
    )
    grace_seconds: float = Field(
        30.0, ge=0, le=86_400, description="time that running requests get to finish after SIGTERM"
    )
    # what is kept
    record: str | None = Field(
        None,
        min_length=1,
        description="folder for requests, answers and feedback as JSON lines; null: none are written",
    )
    record_bytes: int = Field(
        64 << 20, ge=1024, le=1 << 40, description="bytes after which the recording continues in a new file"
    )
    traces: bool = Field(False, description="send a trace of every request to MLflow, with prompt and answer")

    @model_validator(mode="after")
    def _check_speculation(self) -> Serving:
        if (self.speculation == "draft") != (self.draft is not None):
            raise ValueError(
                f"speculation draft and a folder in draft belong together, got {self.speculation} and "
                f"{short_repr(self.draft)}"
            )
        if self.speculation != "off" and self.backend != "foundry":
            raise ValueError(f"speculation needs the backend foundry, got {self.backend}")
        return self

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            scheme, mark, rest = origin.partition("://")
            if scheme not in ("http", "https") or not mark or not rest or any(c in rest for c in "/*?# \t\n@\\"):
                raise ValueError(
                    f"must be exact origins such as https://example.org or http://localhost:3000, without a path and "
                    f"without *, got {short_repr(origin)}"
                )
        return origins
