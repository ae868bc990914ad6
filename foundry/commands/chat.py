"""A conversation with the chat model: chat."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.commands.arguments import Subparsers, TypedPath, add_command
from foundry.commands.sampling import add_sampling, given_sampling
from foundry.commands.serving import default_source, with_options
from foundry.config import Config, ConfigError, Runtime, Serving, load_params
from foundry.config.sampling import ANSWERING
from foundry.utils.files import state_dir

if TYPE_CHECKING:
    from foundry.serving.version import Version

EXPORT = Path("artifacts/chat/export")
LONGEST = 512  # tokens of an answer, unless the user says otherwise; a model that has learnt to answer ends earlier


def chat(args: argparse.Namespace) -> None:
    cfg = load_params(args.params) if os.path.exists(args.params) else None
    given = {name: value for name in ("model", "backend", "weights") if (value := getattr(args, name)) is not None}
    serving = with_options(cfg.serving if cfg else Serving(), {**given, "max_running": 1})
    name = cfg.chat_export.model_name if cfg else "foundry-chat"
    source, fallback = (args.model, None) if args.model else default_source(name, EXPORT, cfg)
    if source == str(EXPORT) and not EXPORT.is_dir():
        raise _missing(f"nothing is registered, and {EXPORT} does not exist")
    device = args.device or (cfg.runtime.device if cfg else "auto")
    runtime = cfg.runtime if cfg else Runtime()
    from foundry.serving.keeper import Keeper
    from foundry.serving.models import Models
    from foundry.serving.registry import ADDRESS, Registry
    from foundry.tracking.settings import tracking_uri

    registry = Registry(tracking_uri(runtime)) if source.startswith(ADDRESS) else None
    models = Models()
    keeper = Keeper(models, source, serving, device, lambda change: None, registry, fallback)
    try:
        try:
            version = keeper.load()
        except ConfigError as e:
            raise e if args.model else _missing(str(e)) from None
        _converse(args, version, cfg)
    finally:
        keeper.close()
        models.close(drain=False)


def _missing(why: str) -> ConfigError:
    return ConfigError(
        f"there is no chat model: {why}. `make chat` builds one from the default model; `foundry generate` continues "
        "texts without it"
    )


def _converse(args: argparse.Namespace, version: Version, cfg: Config | None) -> None:
    from foundry.chat.conversation import Conversation
    from foundry.chat.terminal import Terminal, on_terminal, over_pipe
    from foundry.chat.transcript import Speaker
    from foundry.inference.conversation import Settings, changed

    facts = version.facts
    if not facts.chat_trained:
        raise ConfigError(
            f"{version.name} from {facts.source} is a base model: it has learnt to continue texts and not to answer, "
            "and would never end its turn. `foundry generate` continues a text; `make chat` builds a model that answers"
        )
    how = changed(ANSWERING, given_sampling(args), version.tokenizer)
    talk = Conversation(
        version.backend,
        version.tokenizer,
        facts.context_length,
        Settings(how, args.max_new_tokens or LONGEST, args.seed),
        args.system or "",
    )
    model = Speaker(version.name, facts.source, facts.version, facts.weights_sha256, facts.context_length)
    if sys.stdin.isatty():
        history = state_dir() / "chat" / "history" if cfg else None
        read = on_terminal(history)
    else:
        read = over_pipe(sys.stdin, sys.stdout)
    Terminal(talk, model, read, sys.stdout, sys.stdout.isatty() and not os.environ.get("NO_COLOR")).run()


def add_to(subparsers: Subparsers) -> None:
    text = "talk to the chat model on a terminal; the champion of foundry-chat by default"
    s = add_command(subparsers, "chat", chat, text)
    text = (
        "models:/NAME@ALIAS, models:/NAME/VERSION, an export or a trained model (default: "
        "models:/foundry-chat@champion, or artifacts/chat/export if no version is registered)"
    )
    s.add_argument("model", action=TypedPath, nargs="?", metavar="MODEL", help=text)
    s.add_argument("--system", metavar="TEXT", help="system message: instructions that come before the conversation")
    s.add_argument("--max-new-tokens", type=int, metavar="N", help=f"of an answer (default: {LONGEST})")
    s.add_argument("--seed", type=int, help="of the first answer; later ones get the seeds after it")
    s.add_argument("--device", help="auto, cpu, cuda or mps (default: runtime.device)")
    s.add_argument("--weights", help="float32, bfloat16, int8 or int4 (default: serving.weights)")
    s.add_argument("--backend", help="foundry or llamacpp (default: serving.backend)")
    add_sampling(s, ANSWERING)
