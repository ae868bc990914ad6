"""`make deploy`: the work pool, the deployments of prefect.yaml, and optionally a webhook.

The webhook is called for runs that are late, fail or crash.

    python -m flows.deploy [--webhook URL]      on the server that PREFECT_API_URL names, or that of `make ui`
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.settings import environment, project_root
from foundry.config import ConfigError, FoundryError, read_yaml
from foundry.utils.files import write_text
from foundry.utils.served import addresses

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOL = "foundry"
HOOK = "foundry-webhook"
EVENTS = ("Late", "Failed", "Crashed")
# A Jinja template, rendered by Prefect's server.
PAYLOAD = """{"flow": {{ flow.name | tojson }}, "run": {{ flow_run.name | tojson }},
"state": {{ flow_run.state.name | tojson }}, "message": {{ flow_run.state.message | tojson }},
"page": {{ flow_run | ui_url | tojson }}}"""


def _is_web(address: str) -> bool:
    try:
        return urllib.parse.urlsplit(address).scheme in ("http", "https")
    except ValueError:  # brackets without an IPv6 address in them
        return False


def deploy(root: Path, api_url: str, webhook: str = "") -> list[str]:
    """Registers pool, deployments and webhook. Idempotent; what was set in the UI stays as it is.

    Returns:
        The names of the deployments.

    Raises:
        ConfigError: if the webhook is not an http address.
        FoundryError: if the server refuses them.
    """
    if webhook and not _is_web(webhook):
        raise ConfigError(f"the webhook must be an http:// or https:// address, got {webhook!r}")
    env = {**environment(root), "PREFECT_API_URL": api_url, "FOUNDRY_VERSION": version(root)}
    # In a process of its own: Prefect reads its settings when it is imported.
    command = [sys.executable, "-m", "flows.deploy", "--register", "--webhook", webhook]
    done = subprocess.run(command, cwd=root, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise FoundryError(
            f"the server at {api_url} did not take the deployments:\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return [full_name(d) for d in read_yaml(root / "prefect.yaml")["deployments"]]


def full_name(deployment: dict[str, Any]) -> str:
    return f"{deployment['entrypoint'].rpartition(':')[2]}/{deployment['name']}"


def register(root: Path, webhook: str) -> None:
    """Does it on the server of this process's PREFECT_API_URL."""
    from prefect.client.orchestration import get_client

    plan = read_yaml(root / "prefect.yaml")
    with get_client(sync_client=True) as client:
        make_pool(client)
        for deployment in plan["deployments"]:
            if is_known(client, full_name(deployment)):  # somebody may have changed its schedules in the UI
                deployment.pop("schedules", None)
    file = root / ".foundry" / "ui" / "prefect.yaml"
    write_text(file, yaml.safe_dump(plan, sort_keys=False, allow_unicode=True))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    if code := subprocess.run(command, cwd=root).returncode:
        sys.exit(code)
    if webhook:
        notify(webhook)


def make_pool(client: SyncPrefectClient) -> None:
    """Makes the work pool, which runs one flow at a time.

    Not by a deployment's own limit: that is kept by leases, which crash healthy runs after a restart of the server.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", base_job_template=template, concurrency_limit=1)
        )


def is_known(client: SyncPrefectClient, name: str) -> bool:
    """Whether the server has a deployment."""
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_deployment_by_name(name)
    except ObjectNotFound:
        return False
    return True


def version(root: Path) -> str:
    """The name that git gives to the deployed code, with `-dirty` if there are changes that are not committed."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, env=environment(root), capture_output=True, text=True).stdout.strip()

    name = git("describe", "--always", "--tags") or "unversioned"  # its option --dirty would lock the index
    return f"{name}-dirty" if git("status", "--porcelain", "--untracked-files=no") else name


def notify(webhook: str) -> None:
    """Makes an automation of the server, which calls the address when a run is late, fails or crashes."""
    from prefect.automations import Automation
    from prefect.blocks.webhook import Webhook
    from prefect.events.actions import CallWebhook
    from prefect.events.schemas.automations import EventTrigger, Posture

    block = Webhook(method="POST", url=webhook).save(HOOK, overwrite=True)
    with contextlib.suppress(ValueError):  # there was none
        Automation.read(name=HOOK).delete()
    Automation(
        name=HOOK,
        description="Calls the webhook when a run is late, fails or crashes.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{e}" for e in EVENTS},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=block, payload=PAYLOAD)],
    ).create()


def server(root: Path) -> str:
    """The API's address: PREFECT_API_URL, or that of the `make ui` of this project.

    Raises:
        ConfigError: if none answers.
    """
    here = addresses(root)
    url = os.environ.get("PREFECT_API_URL") or (f"{here.prefect}/api" if here else "")
    if not url:
        raise ConfigError("no Prefect server is known: start one with `make ui`, or set PREFECT_API_URL")
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except OSError as e:
        raise ConfigError(f"{url} does not answer ({e}): start it with `make ui`, or set PREFECT_API_URL") from None
    return url


def main() -> None:
    parser = argparse.ArgumentParser(description="Register the flows of prefect.yaml with a running Prefect server.")
    parser.add_argument("--webhook", default="", metavar="URL", help="called for runs that are late, fail or crash")
    parser.add_argument("--register", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    root = project_root()
    try:
        if args.register:
            register(root, args.webhook)
            return
        url = server(root)
        names = deploy(root, url, args.webhook)
    except FoundryError as e:
        sys.exit(f"error: {e}")
    print(f"{url.removesuffix('/api')}: {', '.join(names)}; version {version(root)}")
    print("schedules are off until you switch them on in the UI; a worker is needed: `make ui` runs one")


if __name__ == "__main__":
    main()
