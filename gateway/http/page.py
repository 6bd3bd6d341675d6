"""`/-/admin`: the page's static files, as they lie in the package. Holds no data: what the page shows it asks the control endpoints for.

No file is looked up by what a request says: the list stands here, and everything in it is read before the doors open.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from typing import Final

from aiohttp import web

from gateway.errors import UnknownUrl
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import query_of

_AT: Final = "/-/admin"
_PAGE: Final = "index.html"
_TYPES: Final[Mapping[str, str]] = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml", "md": "text/plain; charset=utf-8", "LICENSE": "text/plain; charset=utf-8",
}
FILES: Final = (
    _PAGE, "app.css", "icon.svg", "main.js", "account.js", "api.js", "approval.js", "approvals.js", "attention.js", "breakers.js",
    "budgets.js", "call.js", "calls.js", "chart.js", "decide.js", "dom.js", "edit.js", "exact.js", "grants.js", "keys.js", "layout.js",
    "live.js", "login.js", "people.js", "router.js", "rules.js", "session.js", "sessions.js", "shell.js", "shortcuts.js", "spend.js",
    "table.js", "text.js", "theme.js", "votes.js", "when.js",
    "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css", "vendor/uPlot.LICENSE", "vendor/VENDORED.md",
)
# No inline script or style, nothing of another origin, no text that becomes markup (trusted types), no frame around it.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cache-Control": "no-cache",  # kept, but asked for: a new version shows at once
}


@dataclass(frozen=True, slots=True)
class _File:
    """One file as it is sent."""

    body: bytes
    content_type: str
    etag: str


class Page:
    """The endpoints of the page. `control` says by which names a browser may reach it."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._files = _read()

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        return {("GET", _AT): self.page, ("GET", f"{_AT}/{{file}}"): self.file, ("GET", f"{_AT}/vendor/{{file}}"): self.file}

    async def page(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/admin`: the page."""
        await self._show(_PAGE, request, client)

    async def file(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/admin/{file}`: one of its files."""
        await self._show(request.rel_url.raw_path.removeprefix(f"{_AT}/"), request, client)

    async def _show(self, name: str, request: web.BaseRequest, client: HttpClient) -> None:
        self._control.doorkeeper.names.check_host(request)
        query_of(request)
        found = self._files.get(name)
        if found is None:
            raise UnknownUrl(f"The page has no such file. It stands at {_AT}.")
        headers = {**_HEADERS, "ETag": found.etag}
        if found.etag in request.headers.get("If-None-Match", ""):
            await client.show(304, headers, b"", found.content_type)
        else:
            await client.show(200, headers, found.body, found.content_type)


def _read() -> Mapping[str, _File]:
    folder = resources.files("gateway").joinpath("page")
    made: dict[str, _File] = {}
    for name in FILES:
        body = folder.joinpath(*name.split("/")).read_bytes()
        made[name] = _File(body, _TYPES[name.rpartition(".")[2]], f'"{sha256(body).hexdigest()[:32]}"')
    return made
