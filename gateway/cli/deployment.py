"""What commands that work on a deployment's database need of its configuration."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from gateway.clock import SystemClock, SystemIds
from gateway.config import Deployment
from gateway.deployment import read_settings
from gateway.errors import SetupError, StoreError
from gateway.secret import Secret, resolve
from gateway.store.database import Connection, open_readonly
from gateway.store.sqlite import SqliteStore

T = TypeVar("T")

_SET_PATH = "set `store.path` to a new file, or to the right one"  # what the store tells a gateway's operator


def database_of(deployment: Deployment) -> Path:
    """Where the deployment's database is. Raises `SetupError` where it is in the gateway's memory."""
    path = deployment.config.store.path
    if path == ":memory:":
        raise SetupError('this deployment keeps everything in memory (`store.path = ":memory:"`): set a file to look into it from here')
    return deployment.folder / path


def open_deployment(config_path: str) -> tuple[Path, Connection]:
    """The database of the deployment with this config.toml, and a connection that only reads it. Rules and routes are not looked at.

    Raises:
        LockgateError: the configuration or the database cannot be used.
    """
    path = database_of(read_settings(Path(config_path)))
    if not path.exists():
        raise StoreError(f"there is no database at {path} yet; `lockgate serve` or `lockgate keys create` makes it "
                         "(another deployment: --config)")
    return path, open_readonly(path)


def open_file(path: Path) -> Connection:
    """A connection that only reads a database that the user has named. Raises `StoreError` in words about that file."""
    if path.is_dir():
        raise StoreError(f"{path} is a directory; name the database file in it")
    if not path.exists():
        raise StoreError(f"there is no file {path}")
    try:
        return open_readonly(path)
    except StoreError as error:
        raise StoreError(error.message.replace(_SET_PATH, "name another file")) from error


def on_store(deployment: Deployment, purpose: str, work: Callable[[SqliteStore], Awaitable[T]]) -> T:
    """Open the deployment's database for writing, beside a gateway or without one, work on it, close it. `purpose` names this process."""
    settings = deployment.config.store
    clock = SystemClock()
    owner = f"{purpose}:{os.getpid()}:{SystemIds(clock).token(8)}"
    store = SqliteStore(
        database_of(deployment), owner, synchronous=settings.synchronous, busy_timeout_s=settings.busy_timeout,
    )

    async def run() -> T:
        await store.start(now_ns=clock.now_ns())
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def pepper_of(deployment: Deployment) -> Secret:
    """The key that virtual keys are hashed with. Raises `SetupError` where it is not set or cannot be read."""
    reference = deployment.config.auth.pepper
    if reference is None:
        raise SetupError('virtual keys need `[auth] pepper`: a reference such as "file:secrets/pepper"')
    try:
        return resolve(reference, os.environ, deployment.folder)
    except ValueError as error:
        raise SetupError(f"`auth.pepper`: {error}") from error
