"""The server: serve."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.commands.arguments import Subparsers, TypedPath, add_command
from foundry.config import Config, ConfigError, Runtime, Serving, load_params

if TYPE_CHECKING:
    from foundry.serving.version import Version

EXPORT = Path("artifacts/export")
OPTIONS = ("model", "backend", "weights", "host", "port", "keys_file", "record")


def serve(args: argparse.Namespace) -> None:
    cfg = load_params(args.params) if os.path.exists(args.params) else None
    given = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    config = with_options(cfg.serving if cfg else Serving(), given)
    device = args.device or (cfg.runtime.device if cfg else "auto")
    raise SystemExit(_run(config, device, cfg))


def with_options(serving: Serving, given: dict[str, Any]) -> Serving:
    """The section with what the command line says.

    Raises:
        ConfigError: naming the key, if a value breaks its rule.
    """
    from pydantic import ValidationError

    try:
        return Serving.model_validate({**serving.model_dump(), **given})
    except ValidationError as e:
        first = e.errors()[0]
        raise ConfigError(
            f"serving.{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}"
        ) from None


def _run(config: Serving, device: str, cfg: Config | None) -> int:
    from foundry.serving.registry import ADDRESS, Registry
    from foundry.tracking.settings import tracking_uri

    source, fallback = (config.model, None)
    if source is None:
        source, fallback = default_source(cfg.export.model_name if cfg else "", EXPORT, cfg)
    runtime = cfg.runtime if cfg else Runtime()
    registry = None
    if source.startswith(ADDRESS):
        if cfg is None and not os.environ.get("MLFLOW_TRACKING_URI"):
            raise ConfigError(f"{source}: run the command in a project, or set MLFLOW_TRACKING_URI")
        registry = Registry(tracking_uri(runtime))  # first: it takes longest
    from foundry.serving.keeper import Keeper
    from foundry.serving.keys import read_keys
    from foundry.serving.lifecycle import listen, serve
    from foundry.serving.server import Running

    keys = read_keys(config.keys_file, os.environ)
    sock = listen(config, keys)
    server = Running(config, keys)
    if config.traces:
        from foundry.serving.traces import Traces

        lost = partial(server.numbers.not_recorded, "trace")
        server.sinks.append(Traces(tracking_uri(runtime), runtime.experiment, lost))
    keeper = Keeper(server.models, source, config, device, server.changed, registry, fallback)
    return serve(server, keeper, sock, lambda version, address: _announce(version, address, bool(len(keys))))


def default_source(name: str, export: Path, cfg: Config | None) -> tuple[str, Path | None]:
    """Which model is meant by default: the champion of a name, or a folder where nothing can be registered.

    Returns:
        An address of the registry or a folder, and the folder that stands in as long as the registry has no such
        version.
    """
    from foundry.serving.registry import ADDRESS
    from foundry.tracking.address import own_store, sqlite_path
    from foundry.tracking.settings import tracking_uri

    if cfg is None or not cfg.runtime.tracking:
        return str(export), None
    store = sqlite_path(tracking_uri(cfg.runtime))
    if store == own_store() and not store.exists():
        return str(export), None  # nothing was ever registered here
    return f"{ADDRESS}{name}@champion", export if export.is_dir() else None


def _announce(version: Version, address: str, keyed: bool) -> None:
    f = version.facts
    score = "not evaluated"
    if f.bits_per_byte:
        b = f.bits_per_byte
        score = f"{b.value:.4f} (95 %: {b.low:.4f} to {b.high:.4f})"
    number = f", version {f.version}" if f.version else ""
    key = " -H 'Authorization: Bearer KEY'" if keyed else ""
    lines = [
        f"serving {version.name}{number} from {f.source}",
        f"  weights        {f.weights_sha256} in {f.weights}, {f.parameters:,} parameters ({f.backend})",
        f"  bits per byte  {score}",
        f"  context        {f.context_length} tokens",
        f"  page           {address}/",
        f"  try            curl {address}/v1/completions{key} -H 'Content-Type: application/json' "
        '-d \'{"prompt": "The ", "max_tokens": 40}\'',
    ]
    print("\n".join(lines), flush=True)


def add_to(subparsers: Subparsers) -> None:
    text = "serve a model by an OpenAI-compatible API and a page; the champion of this project by default"
    s = add_command(subparsers, "serve", serve, text)
    text = "models:/NAME@ALIAS, models:/NAME/VERSION, an export or a trained model (default: serving.model)"
    s.add_argument("model", action=TypedPath, nargs="?", metavar="MODEL", help=text)
    s.add_argument("--host", help="address to listen on (default: serving.host)")
    s.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (default: serving.port)")
    s.add_argument("--device", help="auto, cpu, cuda or mps (default: runtime.device)")
    s.add_argument("--weights", help="float32, bfloat16, int8 or int4 (default: serving.weights)")
    s.add_argument("--backend", help="foundry or llamacpp (default: serving.backend)")
    s.add_argument("--keys-file", action=TypedPath, help="file of API keys (default: serving.keys_file)")
    s.add_argument("--record", action=TypedPath, help="folder to record into (default: serving.record)")
