"""Uploading a proved export to a hub as one commit: `hf/` becomes the root, the GGUF files and the proof are beside it.

The token is read only from `HF_TOKEN`, never from a stored login; `HF_ENDPOINT` names another hub than the library's
own. Tested against a small server on loopback that speaks the hub's protocol with plain uploads; never run against a
public hub, nor with the Xet protocol, which the library chooses by itself if the package hf_xet is installed.
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
        repo: OWNER/NAME; created if it does not exist.
        private: whether a repository that is created now is private; an existing one keeps its setting.

    Returns:
        The URL of the commit.

    Raises:
        ExportError: if the export was changed, `HF_TOKEN` is not set, the name is not OWNER/NAME, or the hub refuses.
    """
    folder = Path(folder)
    record = verify_export(folder)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ExportError(f"REPO must be OWNER/NAME, got {repo!r}")
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise ExportError("HF_TOKEN is not set: set this environment variable to a token that may write to the hub")
    from huggingface_hub.errors import HTTPError  # from the library's HTTP client: no connection, or a refusal

    try:
        return _upload(folder, repo, private, token, record)
    # RuntimeError: a file was not sent; ValueError: a name is not allowed.
    except (HTTPError, OSError, RuntimeError, ValueError) as e:
        raise ExportError(f"the upload to {repo} failed: {str(e).strip()[:500]}") from e


def files_to_push(folder: Path, record: ExportRecord) -> dict[str, Path]:
    """{path in the repository: file} of every file of the export and its proof."""
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
