"""What commands that work on a deployment's database need of its configuration."""

import os
from pathlib import Path

from gateway.config import Deployment, read_deployment
from gateway.errors import SetupError
from gateway.secret import Secret, resolve


def database_of(deployment: Deployment) -> Path:
    """Where the deployment's database is. Raises `SetupError` where it is in the gateway's memory."""
    path = deployment.config.store.path
    if path == ":memory:":
        raise SetupError('this deployment keeps everything in memory (`store.path = ":memory:"`): set a file to look into it from here')
    return deployment.folder / path


def database_at(config_path: str) -> Path:
    """Where the database of the deployment with this config.toml is."""
    return database_of(read_deployment(Path(config_path)))


def pepper_of(deployment: Deployment) -> Secret:
    """The key that virtual keys are hashed with. Raises `SetupError` where it is not set or cannot be read."""
    reference = deployment.config.auth.pepper
    if reference is None:
        raise SetupError('virtual keys need `[auth] pepper`: a reference such as "file:secrets/pepper"')
    try:
        return resolve(reference, os.environ, deployment.folder)
    except ValueError as error:
        raise SetupError(f"`auth.pepper`: {error}") from error
