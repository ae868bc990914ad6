"""The files in deploy/: accepted by the linters and schemas of their formats, and in agreement with the server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from foundry.config import load_params

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
GRACE = load_params(ROOT / "params.yaml").serving.grace_seconds


def documents(path):
    return [d for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d]


def test_hadolint_accepts_the_dockerfile():
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert program, "hadolint is missing: it is in the extra `dev`"
    done = subprocess.run([program, str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_follows_the_compose_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(DEPLOY / "compose.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_starts_in_order_and_lets_requests_finish():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert set(services) == {"postgres", "store", "bucket", "mlflow", "serve"}
    assert services["serve"]["depends_on"] == {"mlflow": {"condition": "service_healthy"}}
    assert set(services["mlflow"]["depends_on"]) == {"postgres", "bucket"}
    assert float(services["serve"]["stop_grace_period"].removesuffix("s")) > GRACE
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert not re.search(r":latest$", service.get("image", ":fixed")), name
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for name in ("mlflow", "serve"):
        target = services[name]["build"]["target"]
        stage = re.search(rf"^FROM .* AS {target}$(.*?)(?=^FROM |\Z)", dockerfile, re.DOTALL | re.MULTILINE)
        assert stage and "HEALTHCHECK" in stage[1] and "USER 10001" in stage[1]
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split()), copied


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_kubernetes_manifests_follow_their_schemas(path):
    for document in documents(path):
        kubernetes_validate.validate(document, "1.36", strict=True)


@pytest.mark.parametrize("path", [p for p in MANIFESTS if "deployment" in p.name], ids=lambda p: p.stem)
def test_a_pod_leaves_the_service_before_it_stops_and_then_finishes_its_requests(path):
    (deployment,) = documents(path)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    sleep = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > sleep + GRACE
    assert container["readinessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    service = documents(DEPLOY / "kubernetes/service.yaml")[0]
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert any(e["name"] == "FOUNDRY_API_KEYS" and "secretKeyRef" in e["valueFrom"] for e in container["env"][1:])
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == ("gpu" in path.name)


def test_systemd_accepts_the_unit(tmp_path):
    text = (DEPLOY / "foundry-serve.service").read_text(encoding="utf-8")
    assert float(re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[1]) > GRACE
    assert "KillMode=mixed" in text
    program = shutil.which("systemd-analyze")
    if not program:
        pytest.skip("systemd is not installed")
    here = tmp_path / "foundry-serve.service"  # with a program, a folder and a user that exist
    here.write_text(text.replace("/srv/foundry/.venv/bin/foundry", "/bin/true").replace("User=foundry", "User=root"))
    done = subprocess.run([program, "verify", "--man=no", str(here)], capture_output=True, text=True)
    assert done.returncode == 0 and "foundry-serve" not in done.stderr, done.stderr
