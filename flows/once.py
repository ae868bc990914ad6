"""One run of a flow from the command line, with a Prefect server that lives as long as the run."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from flows.options import Build
from flows.runner import die_with_parent
from flows.settings import project_root
from foundry.config import ConfigError, FoundryError, parse_yaml

OWN_SESSION = "FOUNDRY_OWN_SESSION"


def parse_set(pairs: list[str]) -> dict[str, Any]:
    """Parses `["train.lr=0.002"]` into {key: value}; values are YAML.

    Raises:
        ConfigError: if a pair has no `=`, or its value is not YAML.
    """
    if bad := [p for p in pairs if "=" not in p]:
        raise ConfigError(f"--set {bad[0]}: write KEY=VALUE, such as --set train.lr=0.002")
    return {k.strip(): parse_yaml(v, f"--set {k.strip()}") for k, v in (p.split("=", 1) for p in pairs)}


def in_own_session(module: str) -> int:
    """Runs this command again in a session of its own and passes Ctrl-C on to that process; returns its exit code.

    In the terminal's session, Ctrl-C would also end Prefect's temporary server, before the run has reported its state.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", module, *sys.argv[1:]],
        env={**os.environ, OWN_SESSION: "1"},
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)


def once(flow: Callable[[Any], Any], form: type[Build], module: str, text: str) -> None:
    """The command line of a flow that builds.

    Args:
        form: of its options.
        module: that the command runs.
        text: one sentence for the help.
    """
    default = form.model_fields["target"].default
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument(
        "--target", default=default, metavar="STAGE", help="this stage and those it needs (default: %(default)s)"
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="other parameters, such as train.lr=0.002"
    )
    parser.add_argument("--revision", default="HEAD", help="commit, branch or tag that is built (default: HEAD)")
    parser.add_argument("--here", action="store_true", help="build in this folder, not in a git worktree")
    parser.add_argument("--force", action="store_true", help="run the stages even if nothing changed")
    args = parser.parse_args()
    if OWN_SESSION not in os.environ:
        sys.exit(in_own_session(module))
    try:
        options = form(
            target=args.target,
            others=parse_set(args.set),
            revision=args.revision,
            isolated=not args.here,
            force=args.force,
        )
        options.check(project_root())
        flow(options)
    except FoundryError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
