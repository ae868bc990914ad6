"""Prefect flow, deployments and local UIs: retry, observe, schedule. No machine learning."""
