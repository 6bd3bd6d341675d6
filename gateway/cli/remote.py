"""The running gateway as commands ask it: what its control endpoints check for people on the page, they check for commands as well."""

import http.client
import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.cli.author import user
from gateway.config import Deployment
from gateway.errors import LockgateError, SetupError
from gateway.secret import Secret, resolve
from gateway.smallfile import read_small

_TIMEOUT_S: Final = 30.0
_UNAUTHORIZED: Final = 401
_LARGEST_TOKEN: Final = 4096
_MOST_ANSWER: Final = 64 * 1024 * 1024
AS_SOMEBODY_ELSE: Final = "This asks with the deployment's admin token; `--token-file FILE` or LOCKGATE_TOKEN asks as somebody else."
_ASKED_WITH: Final = "The token is what `--token-file FILE`, LOCKGATE_TOKEN or the deployment's `[admin] token` gives, in this order."
_COMMANDS: Final = {  # what an endpoint that the gateway names is called here
    "GET /-/approvals": "lockgate approvals list", "GET /-/grants?live=true": "lockgate approvals grants",
    "GET /-/sessions": "lockgate sessions list", "GET /-/people": "lockgate people list", "GET /-/calls": "lockgate calls tail"}


class RefusedError(LockgateError):
    """The gateway has refused what a command asks for; the message is the gateway's own. `code` of the answer is `told`."""

    code = "refused"

    def __init__(self, message: str, told: str) -> None:
        super().__init__(message)
        self.told = told


@dataclass(frozen=True, slots=True)
class Remote:
    """A gateway that runs somewhere, and the token that it is asked with."""

    url: str
    token: Secret
    as_admin: bool = False  # nobody has said whose token it is to be

    @classmethod
    def of(cls, deployment: Deployment, url: str | None, token_file: str | None) -> "Remote":
        """The gateway of a deployment, or another one; the token out of a file, `LOCKGATE_TOKEN`, or the deployment's own.

        Raises:
            SetupError: there is no token, or it cannot be read; the URL is none.
        """
        server = deployment.config.server
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(server.host, server.host)  # noqa: S104 - where everybody listens, we ask here
        chosen = url or f"http://{f'[{host}]' if ':' in host else host}:{server.port}"
        if urlsplit(chosen).scheme not in ("http", "https") or not urlsplit(chosen).hostname:
            raise SetupError(f"{chosen!r} is no address of a gateway: http://127.0.0.1:8080")
        token, as_admin = _token(deployment, token_file)
        return cls(chosen.rstrip("/"), token, as_admin)

    def get(self, path: str) -> dict[str, Any]:
        """What stands at a path. Raises as `post` does."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any = None) -> dict[str, Any]:
        """Ask for a change.

        Raises:
            RefusedError: with the gateway's reason.
            SetupError: it cannot be reached, or is none.
        """
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Any) -> dict[str, Any]:
        status, content_type, data = self._exchange(method, path, None if body is None else json.dumps(body).encode())
        try:
            told = json.loads(data)
        except ValueError:
            told = None
        if not isinstance(told, dict) or "json" not in content_type:
            raise SetupError(f"what answers at {self.url} is no gateway (status {status})")
        if status >= 400:
            words = str(told.get("detail") or told.get("title") or status)
            for endpoint, command in _COMMANDS.items():
                words = words.replace(f"`{endpoint}`", f"`{command}`")
            if status == _UNAUTHORIZED:
                words = f"{words} {_ASKED_WITH}"
            raise RefusedError(words, str(told.get("code", "")))
        return told

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, str, bytes]:
        at = urlsplit(self.url)
        headers = {"Authorization": f"Bearer {self.token.reveal()}", "Accept": "application/json", "X-Lockgate-Author": _author()}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = (
            http.client.HTTPSConnection(at.hostname or "", at.port, timeout=_TIMEOUT_S, context=ssl.create_default_context())
            if at.scheme == "https" else http.client.HTTPConnection(at.hostname or "", at.port, timeout=_TIMEOUT_S))
        try:
            connection.request(method, f"{at.path.rstrip('/')}{path}", body, headers)
            answer = connection.getresponse()
            data = answer.read(_MOST_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            raise SetupError(f"the gateway at {self.url} cannot be asked ({str(error) or type(error).__name__}); "
                             "is it running there? Another address: --url") from error
        finally:
            connection.close()
        if len(data) > _MOST_ANSWER:
            raise SetupError(f"the gateway at {self.url} answers with more than {_MOST_ANSWER} bytes")
        return answer.status, answer.headers.get("Content-Type", ""), data


def _author() -> str:
    """Who works here, as far as a header can say it."""
    return "".join(letter for letter in user() if letter.isascii() and letter.isprintable())[:100].strip() or "cli"


def _token(deployment: Deployment, token_file: str | None) -> tuple[Secret, bool]:
    """The token to ask with, and whether it is the deployment's own."""
    if token_file is not None:
        try:
            return Secret(read_small(Path(token_file), limit=_LARGEST_TOKEN).decode().strip()), False
        except (OSError, ValueError) as error:
            raise SetupError(f"the token cannot be read from {token_file}: {error}") from error
    given = os.environ.get("LOCKGATE_TOKEN")
    if given:
        return Secret(given), False
    reference = deployment.config.admin.token
    if reference is None:
        raise SetupError("there is no token to ask with: give --token-file, set LOCKGATE_TOKEN, or set `[admin] token`")
    try:
        return resolve(reference, os.environ, deployment.folder), True
    except ValueError as error:
        raise SetupError(f"`admin.token`: {error}") from error
