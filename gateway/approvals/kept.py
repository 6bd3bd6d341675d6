"""Answers that are kept while people look at a part of them, and given again to whoever presents their request: as JSON and back. Pure."""

from dataclasses import asdict

from gateway.call import JsonObject, Reply, Usage
from gateway.gate import Gate
from gateway.wire.assemble import Assembler
from gateway.wire.protocol import Event


def kept_json(reply: Reply, unfit: str = "") -> JsonObject:
    """A provider's answer as it is kept; `unfit` is why validators do not let it pass, empty where they do."""
    return {"body": dict(reply.body), "usage": None if reply.usage is None else asdict(reply.usage), "reasons": list(reply.finish_reasons),
            "unfit": unfit}


def kept_stream(whole: Assembler) -> JsonObject | None:
    """The same of a stream, once a choice of it has ended; None where there are others, which may not have."""
    body = whole.body()
    if body.get("lockgate_truncated") or len(body["choices"]) != 1:
        return None
    reason = body["choices"][0].get("finish_reason")
    return {"body": body, "usage": None, "reasons": [reason] if isinstance(reason, str) else [], "unfit": ""}


def kept_reply(kept: JsonObject) -> Reply:
    """The answer that was kept."""
    usage = kept["usage"]
    return Reply(kept["body"], None if usage is None else Usage(**usage), tuple(kept["reasons"]))


class Keeping:
    """Puts together what comes to a gate."""

    def __init__(self, inner: Gate, whole: Assembler) -> None:
        self._inner = inner
        self._whole = whole

    async def take(self, event: Event) -> list[Event]:
        if event.body is not None:
            self._whole.add(event.body)
        return await self._inner.take(event)

    async def end(self) -> list[Event]:
        return await self._inner.end()
