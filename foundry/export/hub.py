"""Uploading a proved export to a hub, as one commit: the folder `hf/` as the root, the GGUF files and the proof beside it.

The token comes from `HF_TOKEN` alone and never from a stored login; `HF_ENDPOINT` names another hub than the library's own.
Tested against a small server on loopback that speaks the hub's protocol with plain uploads; never run against a public hub,
nor with the Xet protocol, which the library takes by itself where the package hf_xet is installed.
"""

from __future__ import annotations

import os
from pathlib import Path

from foundry.config import ExportError
from foundry.export.manifest import NAME, verify_export
from foundry.export.proof import ExportRecord


def push(folder: str | Path, repo: str, private: bool) -> str:
    """Uploads a verified export; files of an earlier upload that this one lacks are removed in the same commit.

    Args:
        repo: OWNER/NAME; made if it is not there.
        private: of a repository that is made now; one that exists keeps its setting.

    Returns:
        The commit's address.

    Raises:
        ExportError: if the export was changed, `HF_TOKEN` is not set, the name is not OWNER/NAME, or the hub refuses.
    """
    folder = Path(folder)
    record = verify_export(folder)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ExportError(f"REPO must be OWNER/NAME, got {repo!r}")
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise ExportError("HF_TOKEN is not set: put a token that may write into the environment")
    from huggingface_hub.errors import HTTPError  # of the library's own client: no connection, a refusal

    try:
        return _upload(folder, repo, private, token, record)
    except (HTTPError, OSError, RuntimeError, ValueError) as e:  # the last two: a file not sent, a name not allowed
        raise ExportError(f"the hub did not take {repo}: {str(e).strip()[:500]}") from e


def files_to_push(folder: Path, record: ExportRecord) -> dict[str, Path]:
    """{path in the repository: file}."""
    return {name.removeprefix("hf/"): folder / name for name in (*record.files, NAME)}


def _upload(folder: Path, repo: str, private: bool, token: str, record: ExportRecord) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    files = files_to_push(folder, record)
    stale = sorted(set(api.list_repo_files(repo)) - set(files) - {".gitattributes"})
    operations = [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
        *(CommitOperationDelete(path_in_repo=name) for name in stale),
    ]
    done = api.create_commit(repo, operations, commit_message=f"{record.model_name}, run {record.fingerprint}")
    return str(done.commit_url)
