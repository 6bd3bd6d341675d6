"""Which facts a decision needs, and getting exactly those."""

from typing import Any

from gateway.call import Call
from gateway.core.decide import Bundle
from gateway.core.facts import Facts, UnreadableFactError, match_keys


def gather(bundle: Bundle, call: Call, now_ns: int) -> Facts:
    """What the `request` rules that could apply to this call read of it. `now_ns` is wall time.

    A fact that the body does not hold in its declared type is noted, not raised: the rules that read it fail closed.
    """
    index = bundle.phases["request"].index
    keys = match_keys(call, with_tools=index.reads_tools)
    values: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    for fact in index.select(keys).facts:
        try:
            values[fact.name] = fact.extract(call, now_ns)
        except UnreadableFactError as error:
            unreadable[fact.name] = str(error)
    return Facts(keys, values, unreadable)
