"""How long a client says that it waits, and what that makes of a route's deadlines. Pure."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from gateway.core.plan import Deadlines
from gateway.errors import InvalidRequest

HEADER: Final = "X-Lockgate-Deadline-Ms"
_SDK: Final = "X-Stainless-Read-Timeout"  # seconds without a byte, after which the official SDKs give up
_MILLISECONDS: Final = re.compile(r"[0-9]{1,9}")
_SECONDS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_SHARE: Final = 0.05  # of what a client waits, for our error to be with it before it gives up
_LEAST_MARGIN_S: Final = 0.02
_LARGEST_MARGIN_S: Final = 1.0


def waits_s(headers: Mapping[str, str]) -> float | None:
    """How long a client waits for a first byte, as far as it says. What cannot be read is for `shortened` to refuse."""
    told = headers.get(_SDK, "")
    whole = headers.get(HEADER, "")
    said = [float(told)] if _SECONDS.fullmatch(told) and float(told) else []
    said += [int(whole) / 1000] if _MILLISECONDS.fullmatch(whole) and int(whole) else []
    return _before(min(said)) if said else None


def shortened(deadlines: Deadlines, headers: Mapping[str, str], *, stream: bool) -> Deadlines:
    """The deadlines of one call. `X-Lockgate-Deadline-Ms` is for the whole call; what an SDK waits is for a plain answer as a whole, and
    for a stream from one byte to the next.

    Raises:
        InvalidRequest: the header is not a number of milliseconds.
    """
    whole = headers.get(HEADER)
    if whole is not None:
        if not _MILLISECONDS.fullmatch(whole) or int(whole) == 0:
            raise InvalidRequest(f"The header {HEADER} must be a whole number of milliseconds, 1 at least.")
        deadlines = replace(deadlines, total_s=min(deadlines.total_s, _before(int(whole) / 1000)))
    told = headers.get(_SDK, "")
    if not _SECONDS.fullmatch(told) or not float(told):  # theirs, and not for us to refuse
        return deadlines
    silence_s = _before(float(told))
    if not stream:
        return replace(deadlines, total_s=min(deadlines.total_s, silence_s))
    return replace(deadlines, silence_s=silence_s)


def _before(wait_s: float) -> float:
    """A moment before somebody who waits so long gives up."""
    margin_s = min(max(_LEAST_MARGIN_S, wait_s * _SHARE), _LARGEST_MARGIN_S)
    return max(wait_s - margin_s, wait_s / 2)
