"""HTTP tools for the gateway to call: each answers with what it received, so that a test can compare that with what was meant."""

from collections.abc import Mapping
from types import MappingProxyType

import orjson

from gateway.simulator.answer import Answer, Ask


class Tools:
    """`ANY /tools/…`. Errors are RFC 9457 problem+json in their fields, sent as JSON; nothing is streamed."""

    endpoints: Mapping[tuple[str, str], str] = MappingProxyType({("*", "/tools/{rest:.*}"): "tool"})

    def answer(self, ask: Ask) -> Answer:
        """An echo; with `huge` as long as that."""
        sent = ask.sent
        echo = {"method": sent.method, "path": sent.path, "query": sent.query, "headers": dict(sent.headers), "body": sent.body}
        if ask.manner.huge:
            echo["padding"] = "x" * ask.manner.huge
        return Answer(body=orjson.dumps(echo))

    def error(self, status: int, message: str | None = None, *, code: str | None = None) -> Answer:
        return Answer(status, orjson.dumps({"title": code or "simulated", "status": status, "detail": message or f"simulated {status}"}))

    def error_frame(self) -> bytes:
        return b""
