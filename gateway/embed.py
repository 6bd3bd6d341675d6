"""Lockgate inside a host process: an async context manager. It installs no signal handlers, sets up no logging, keeps no globals."""

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from gateway.app import App, Parts
from gateway.config import Deployment
from gateway.deployment import read_deployment
from gateway.errors import SetupError
from gateway.reload import Reloaded, load
from gateway.snapshot import refuse_open_doors
from gateway.watch import Watch

_BACKLOG: Final = 1024
_NOT_RUNNING: Final = "The gateway is not running: use it as `async with Gateway(…) as gateway`."


class Gateway:
    """A gateway that serves while the `async with` block runs.

        async with Gateway("deployment/config.toml", port=0) as gateway:
            client = AsyncOpenAI(base_url=gateway.url + "/v1", api_key=key)

    `config` is the path of a `config.toml` or a deployment already read; `port` 0 takes a free one; `write` receives the log's
    lines as bytes (by default they go nowhere); `environ` is where `env:` references are looked up; with `watch` it reloads by itself
    when a file changes. Several may run in one process.

    Raises:
        ConfigError: the deployment cannot be used; names every problem.
        SetupError: the port is taken, or the binding is unsafe.
        StoreError: the database cannot be opened.
    """

    def __init__(  # noqa: PLR0913 - a host sets what it needs by name, all but the first have defaults
        self, config: str | Path | Deployment, *, host: str | None = None, port: int | None = None, sock: socket.socket | None = None,
        write: Callable[[bytes], None] | None = None, environ: Mapping[str, str] | None = None, parts: Parts | None = None,
        watch: bool = False,
    ) -> None:
        self._deployment = config if isinstance(config, Deployment) else read_deployment(Path(config))
        self._watch = Watch(self._deployment) if watch else None  # now: what changes while this compiles is a change
        self._loaded = load(self._deployment, os.environ if environ is None else environ)
        self._host = host or self._deployment.config.server.host
        self._port = self._deployment.config.server.port if port is None else port
        self._sock = sock
        self._write = write or _nowhere
        self._parts = parts or Parts()
        self.app: App | None = None

    @property
    def url(self) -> str:
        """Where it listens, `http://HOST:PORT`; a client's base URL is this with `/v1` behind it."""
        if self._sock is None:
            raise SetupError(_NOT_RUNNING)
        host, port = self._sock.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def running(self) -> App:
        """Its parts, while it runs."""
        if self.app is None or self._sock is None:
            raise SetupError(_NOT_RUNNING)
        return self.app

    async def __aenter__(self) -> Self:
        if self._sock is None:
            self._sock = listen(self._host, self._port, self._deployment)
        refuse_open_doors(self._sock.getsockname()[0], self._deployment)  # also a socket that was handed in
        self.app = App(self._loaded, write=self._write, parts=self._parts, watch=self._watch)
        async with AsyncExitStack() as undo:  # a start that fails leaves nothing behind in its host
            undo.callback(self._sock.close)
            undo.push_async_callback(self.app.stop)
            await self.app.start(self._sock)
            undo.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sock = None
        if self.app is not None:
            await self.app.stop()


    async def reload(self) -> Reloaded:
        """Put changed files in force: all of them or none, for calls that begin from now on.

        Raises:
            ConfigError: the files cannot be used; names every problem. What was in force stays so.
            StoreError, StoreUnavailable: the store could not keep the new rules. The same.
            SetupError: the gateway is not running.
        """
        return await self.running.reloader.reload()


def listen(host: str, port: int, deployment: Deployment) -> socket.socket:
    """A listening socket. Raises `SetupError` for an address that is taken or not ours, or that would leave the doors open."""
    refuse_open_doors(host, deployment)
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SetupError(f"Cannot listen on {host}: {error.strerror or error}. Set `server.host` to an address of this machine.") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        advice = "Stop what uses it, or choose another with --port or `server.port`."
        raise SetupError(f"Cannot listen on {host}:{port}: {error.strerror}. {advice}") from error
    sock.setblocking(False)
    return sock


def _nowhere(lines: bytes) -> None:
    _ = lines
