"""The routes: text, models, tokens, and operation."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from foundry.config.sampling import PARAMETERS, Parameter
from foundry.serving.body import read_request
from foundry.serving.chat import ChatForm, messages_of
from foundry.serving.completions import CompletionForm
from foundry.serving.errors import invalid, unavailable, unknown_model
from foundry.serving.forms import Form
from foundry.serving.generation import Generation
from foundry.serving.page import build_page
from foundry.serving.planning import check_characters, check_ids
from foundry.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    FeedbackRequest,
    Options,
    TokenizeRequest,
)
from foundry.serving.state import Call, Common
from foundry.serving.version import Version
from foundry.tokenizers.chat import encode_chat

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def add_routes(app: FastAPI, common: Common) -> None:
    """Adds all routes to the application."""
    server = common.server
    page = build_page(server.config)

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return Response(page.html, headers=page.headers)

    _add_text(app, common, CompletionForm, "Continue texts or token ids")
    _add_text(app, common, ChatForm, "Answer a conversation")

    @app.get("/v1/models", summary="The models that are served")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(v) for v in server.versions()]})

    @app.get("/v1/models/{name:path}", summary="One of the models that are served")
    async def retrieve_model(name: str) -> Response:
        for version in server.versions():
            if version.answers_to(name):
                return JSONResponse(_model(version))
        raise unknown_model(name, [v.name for v in server.versions()])

    @app.post("/tokenize", summary="The token ids of a text or a conversation", openapi_extra=_body(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        _, asked, _ = await read_request(request.scope, request.receive, common, TokenizeRequest)
        with server.hold(asked.model) as version:
            Call.of(request.scope).answered_by(version)
            return JSONResponse(await common.off_loop(_tokenize, version, asked, common))

    @app.post("/detokenize", summary="The text of token ids", openapi_extra=_body(DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        _, asked, _ = await read_request(request.scope, request.receive, common, DetokenizeRequest)
        with server.hold(asked.model) as version:
            Call.of(request.scope).answered_by(version)
            return JSONResponse(await common.off_loop(_detokenize, version, asked))

    @app.post("/v1/feedback", summary="Rate an answer of a server that records", openapi_extra=_body(FeedbackRequest))
    async def feedback(request: Request) -> Response:
        _, asked, _ = await read_request(request.scope, request.receive, common, FeedbackRequest)
        key = Call.of(request.scope).key
        server.feedback(asked.id, asked.index, asked.rating, asked.comment, key.name if key else None)
        return JSONResponse({"object": "feedback", "id": asked.id, "index": asked.index, "rating": asked.rating})

    @app.get("/health", summary="Whether the process answers")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/ready", summary="Whether new requests are taken: 503 while loading and after SIGTERM")
    async def ready() -> Response:
        if reason := server.unready():
            raise unavailable(reason)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", summary="Metrics in the text format of Prometheus")
    async def metrics() -> Response:
        return Response(server.metrics(), headers={"Content-Type": PROMETHEUS})


def _add_text(app: FastAPI, common: Common, form: type[Form[Any]], summary: str) -> None:
    async def generate() -> Response:
        return Generation(common, form)

    app.post(form.route, summary=summary, openapi_extra=_body(form.kind))(generate)


def _model(version: Version) -> dict[str, Any]:
    """A model as the OpenAI API lists it, and its facts."""
    facts = version.facts.model_dump()
    return {"id": version.name, "object": "model", "created": version.loaded, "owned_by": "foundry", **facts}


def _tokenize(version: Version, asked: TokenizeRequest, common: Common) -> dict[str, Any]:
    if (asked.prompt is None) == (not asked.messages):
        raise invalid("give either prompt or messages", "prompt", "missing_required_parameter")
    if asked.messages:
        messages = messages_of(asked.messages)
        check_characters([m.content for m in messages], common.server.config, "messages")
        ids = encode_chat(version.tokenizer, messages, answer=asked.add_generation_prompt)
    else:
        check_characters([asked.prompt or ""], common.server.config, "prompt")
        ids = version.tokenizer.encode(asked.prompt or "", bos=asked.add_special_tokens)
    return {
        "count": len(ids),
        "max_model_len": version.facts.context_length,
        "tokens": ids,
        "token_strs": [version.texts.of(i)[0] for i in ids],
    }


def _detokenize(version: Version, asked: DetokenizeRequest) -> dict[str, Any]:
    if asked.tokens:
        check_ids([asked.tokens], version, "tokens")
    return {"prompt": version.tokenizer.decode(asked.tokens)}


def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """A reference to the schema of a body, for `/openapi.json`."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The content of `/openapi.json`: FastAPI's, with the bodies, which are not read by FastAPI."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas: dict[str, Any] = {}
    for kind in (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest, FeedbackRequest):
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        if issubclass(kind, Options):
            schema["properties"] |= {p.name: _sampling(p) for p in PARAMETERS}
        schemas[kind.__name__] = schema
    document["components"] = {"schemas": schemas}
    for methods in document["paths"].values():
        for route in methods.values():
            route["responses"].pop("422", None)  # FastAPI's own status for bad values, which is 400 here
    return document


def _sampling(parameter: Parameter) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "number": {"type": "number"},
        "integer": {"type": "integer"},
        "ids": {"type": "array", "items": {"type": "integer"}},
        "words": {"type": "array"},
        "bias": {"type": "object", "additionalProperties": {"type": "number"}},
    }
    schema = {**kinds[parameter.kind], "description": f"{parameter.text} ({parameter.rule})"}
    return schema if parameter.kind not in ("number", "integer") else {**schema, "default": parameter.default}
