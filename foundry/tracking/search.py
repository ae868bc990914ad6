"""Searches in MLflow that give everything: MLflow's own stop at a page, without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

PAGE = 1000  # rows of one request; a server may give fewer


def every_run(client: MlflowClient, experiment: str, query: str = "") -> Iterator[Run]:
    """The runs of an experiment that were not deleted, the newest first."""
    return _pages(lambda token: client.search_runs([experiment], query, max_results=PAGE, page_token=token))


def every_version(client: MlflowClient, name: str) -> Iterator[ModelVersion]:
    """The versions of a model that were not deleted."""
    return _pages(lambda token: client.search_model_versions(f"name='{name}'", max_results=PAGE, page_token=token))


def every_model(client: MlflowClient) -> Iterator[RegisteredModel]:
    return _pages(lambda token: client.search_registered_models(max_results=PAGE, page_token=token))


def _pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return
