"""How long a client says that it waits, and what that makes of a route's deadlines. Pure."""

import re
from collections.abc import Mapping
from math import inf
from typing import Final

from gateway.core.plan import Deadlines
from gateway.errors import InvalidRequest, UpstreamTimeout

HEADER: Final = "X-Lockgate-Deadline-Ms"
_SDK: Final = "X-Stainless-Read-Timeout"  # seconds without a byte, after which the official SDKs give up
_MILLISECONDS: Final = re.compile(r"[0-9]{1,15}")
_SECONDS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_SHARE: Final = 0.05  # of what a client waits, for our error to be with it before it gives up
_LEAST_MARGIN_S: Final = 0.02
_LARGEST_MARGIN_S: Final = 1.0
_MUCH_LESS: Final = 0.9


def waits_s(headers: Mapping[str, str]) -> float | None:
    """How long a client waits for a first byte, as far as it says. What cannot be read is for `shortened` to refuse."""
    told = headers.get(_SDK, "")
    whole = headers.get(HEADER, "")
    said = [float(told)] if _SECONDS.fullmatch(told) and float(told) else []
    said += [int(whole) / 1000] if _MILLISECONDS.fullmatch(whole) and int(whole) else []
    return _before(min(said)) if said else None


def whole_s(headers: Mapping[str, str]) -> float | None:
    """How long a client waits for the end of its answer, as far as it says. What cannot be read is for `shortened` to refuse."""
    whole = headers.get(HEADER, "")
    return int(whole) / 1000 if _MILLISECONDS.fullmatch(whole) and int(whole) else None


def shortened(deadlines: Deadlines, headers: Mapping[str, str], *, stream: bool, used_s: float = 0.0, sent_s: float = 0.0,
              spoken: bool = False) -> Deadlines:
    """The deadlines of one call that came `used_s` seconds ago: so much of what its client waits is over, and nothing of the route's. It
    took `sent_s` of them to send its body, from when on SDKs count. `spoken`: its stream has begun, so that it hears something.

    `X-Lockgate-Deadline-Ms` is for the whole call; what an SDK waits is for a plain answer as a whole, and
    for a stream from one byte to the next.

    Raises:
        InvalidRequest: the header is not a number of milliseconds.
        UpstreamTimeout: the client's time is up.
    """
    whole, told = headers.get(HEADER), headers.get(_SDK, "")
    total_s, silence_s = deadlines.total_s, inf
    if whole is not None:
        if not _MILLISECONDS.fullmatch(whole) or int(whole) == 0:
            raise InvalidRequest(f"The header {HEADER} must be a whole number of milliseconds, 1 at least and of 15 digits at most.")
        total_s = min(total_s, _before(int(whole) / 1000) - used_s)
    if _SECONDS.fullmatch(told) and float(told):  # any other is theirs, and not for us to refuse
        silence_s = _before(float(told)) - (used_s - sent_s)
    if spoken:
        silence_s = inf
    if not stream:
        total_s, silence_s = min(total_s, silence_s), inf
    if min(total_s, silence_s) <= 0:
        raise UpstreamTimeout("The time that the client gave was up before the call could be sent.")
    least_s = min(total_s, silence_s)
    if least_s >= deadlines.total_s:
        return deadlines
    own = deadlines
    return Deadlines(own.connect_s, own.headers_s, own.first_token_s, own.idle_s, total_s, silence_s, least_s < own.total_s * _MUCH_LESS)


def told(deadlines: Deadlines, own: Deadlines) -> str:
    """Whose patience bounds a call that has these deadlines on a route that has its `own`."""
    if deadlines.silence_s < min(deadlines.total_s, own.total_s):
        return f"the {deadlines.silence_s:.3g} s for which the client waits for a first byte"
    if deadlines.total_s < own.total_s:
        return f"the {deadlines.total_s:.3g} s that the client's own deadline leaves"
    return f"the route's `total` deadline of {own.total_s:.3g} s"


def _before(wait_s: float) -> float:
    """A moment before somebody who waits so long gives up."""
    margin_s = min(max(_LEAST_MARGIN_S, wait_s * _SHARE), _LARGEST_MARGIN_S)
    return max(wait_s - margin_s, wait_s / 2)
