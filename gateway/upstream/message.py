"""What both transports hold to of HTTP/1.1: which requests may be written, which answers are taken, when a connection is clean.

It opens no connection, and reads and writes none.
"""

import asyncio
import re
import select
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.errors import AttemptFailed
from gateway.upstream.protocol import HttpRequest

MAX_HEAD: Final = 64 * 1024  # bytes of an answer's status line and headers; again of its trailers
MAX_HEADERS: Final = 128
WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # methods whose requests say no length where they have no body
BUFFER: Final = 256 * 1024  # bytes of a body that may wait for a slow consumer before reading from the socket stops

_ORIGIN = re.compile(r"(https?)://(?:\[([0-9a-fA-F:.]+)\]|([0-9A-Za-z._-]+))(?::([0-9]{1,5}))?")
_TARGET = re.compile(r"/[!\"$-~]*")  # every visible ASCII character but #, which is never sent
_METHOD = re.compile(r"[A-Z]+")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_HEADERS = re.compile(r"(?:[!#$%&'*+.^_`|~0-9a-z-]+: [^\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]*\r\n)*")
_FRAMING = frozenset({"connection", "content-length", "transfer-encoding", "keep-alive", "proxy-connection", "te", "trailer",
                      "upgrade", "expect", "accept-encoding"})


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections go. `host` is a name or an address without brackets; `authority` is what the `host` header says."""

    tls: bool
    host: str
    port: int
    authority: str

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


def split_url(url: str) -> tuple[str, str]:
    """The part of a URL that names an origin, and the request target as it stands: no part of a path is ever rewritten.

    Raises:
        AttemptFailed: `malformed` where the target holds what may not stand in a request line.
    """
    slash = url.find("/", 8)  # behind https://
    if slash < 0:
        return url, "/"
    target = url[slash:]
    if _TARGET.fullmatch(target) is None:
        raise refused("the URL's path holds a character that must be percent-encoded")
    return url[:slash], target


def origin(prefix: str) -> Origin:
    """The origin that `split_url` found. A name must be in its ASCII form (`xn--…`).

    Raises:
        AttemptFailed: `malformed` for anything but http or https with a host and at most a port.
    """
    match = _ORIGIN.fullmatch(prefix)
    if match is None or int(match[4] or 1) not in range(1, 65536):
        raise refused("the URL is not http:// or https:// with a host in ASCII and, at most, a port")
    tls = match[1] == "https"
    default = 443 if tls else 80
    port = int(match[4] or default)
    host = match[2] or match[3]
    shown = f"[{host}]" if match[2] else host
    return Origin(tls, host, port, shown if port == default else f"{shown}:{port}")


def header_lines(request: HttpRequest) -> str:
    """The request's own headers as lines, proved to be headers and nothing else.

    Raises:
        AttemptFailed: `malformed` for a name that is not a lower-case token, for a control character in a value (a line break
            would start another header or another request), and for the headers that only a transport may set.
    """
    headers = request.headers
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if not all(map(_NAME.fullmatch, headers)) or _HEADERS.fullmatch(lines) is None or lines.count("\n") != len(headers):
        raise refused(f"the header {_bad_header(headers)!r} cannot be sent: see its name and its value's control characters")
    if not _FRAMING.isdisjoint(headers):
        raise refused(f"the header {min(_FRAMING & headers.keys())!r} is set by the transport alone")
    if _METHOD.fullmatch(request.method) is None:
        raise refused("the method is not an upper-case word")
    return lines


def _bad_header(headers: Mapping[str, str]) -> str:
    """The name of the first header that is none. Its value is never told: it may be a credential."""
    return next((name for name, value in headers.items()
                 if _NAME.fullmatch(name) is None or "\n" in value or _HEADERS.fullmatch(f"{name}: {value}\r\n") is None), "")


def refused(reason: str) -> AttemptFailed:
    """A request that must not be written. Nothing was sent; sending it again would end the same."""
    return AttemptFailed("malformed", f"the request was not sent: {reason}", retryable=False)


def answer_fault(status: int, version: str, encodings: list[str], codings: list[str]) -> str | None:
    """Why an answer with this head cannot be taken, or None. `encodings` and `codings` are every value of `transfer-encoding` and of
    `content-encoding`.

    Stricter than RFC 9112 on purpose: `chunked` alone is what every server sends, and anything else is where two parsers
    disagree about where a message ends (section 11.1 and 11.2, response splitting and smuggling).
    """
    if not 200 <= status < 600:
        return f"its status is {status}"
    if version not in ("1.1", "1.0"):
        return f"it says HTTP/{version}"
    if encodings and (version != "1.1" or len(encodings) > 1 or encodings[0].lower() != "chunked"):
        return "its transfer-encoding is not chunked alone"
    if any(coding.lower() not in ("", "identity") for coding in codings):
        return "its body is content-encoded although the request asked for identity"
    return None


def poll(transport: asyncio.BaseTransport) -> select.poll:
    """What to ask `is_quiet` with."""
    watch = select.poll()
    watch.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return watch


def is_quiet(watch: select.poll) -> bool:
    """Whether nothing lies in an idle connection's socket: neither the peer's goodbye nor bytes that nobody asked for.

    The event loop tells of both too, but only after the next request was written; bytes sent before would then pass for its answer.
    """
    return not watch.poll(0)


def tls_context() -> ssl.SSLContext:
    """The system's certificate authorities, the host's name checked, TLS 1.2 at least."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
