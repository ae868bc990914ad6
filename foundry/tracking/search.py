"""Searches in MLflow that return everything: MLflow's own stop after one page of results without saying so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

PAGE, LOGGED_MODELS = 1000, 100  # results per request; a server may return fewer


def every_run(client: MlflowClient, experiment: str, query: str = "") -> Iterator[Run]:
    """The runs of an experiment that are not deleted, newest first."""
    return _pages(lambda token: client.search_runs([experiment], query, max_results=PAGE, page_token=token))


def first_run(client: MlflowClient, experiment: str, tag: str, value: str) -> Run | None:
    """The newest run of an experiment that has this value of a tag; None if there is none."""
    found = client.search_runs([experiment], f"tags.`{tag}` = '{value}'", max_results=1)
    return found[0] if found else None


def every_version(client: MlflowClient, name: str) -> Iterator[ModelVersion]:
    """The versions of a registered model that are not deleted."""
    return _pages(lambda token: client.search_model_versions(f"name='{name}'", max_results=PAGE, page_token=token))


def every_model(client: MlflowClient) -> Iterator[RegisteredModel]:
    """All registered models."""
    return _pages(lambda token: client.search_registered_models(max_results=PAGE, page_token=token))


def every_logged_model(client: MlflowClient, experiment: str, tag: str, value: str) -> Iterator[LoggedModel]:
    """The logged models of an experiment that have this value of a tag."""
    query = f"tags.`{tag}` = '{value}'"
    return _pages(
        lambda token: client.search_logged_models([experiment], query, max_results=LOGGED_MODELS, page_token=token)
    )


def _pages(search: Callable[[str | None], Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return
