"""Gateways that are really killed, and the upstream that notes what reaches it."""

import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

DOOMED = Path(__file__).with_name("doomed.py")
STARTS_S = 30


@dataclass(frozen=True)
class Sent:
    """One call as it reached an upstream. `key` is its idempotency key, `call` the gateway's call that made it."""

    kind: str  # `model`, or the tool's name
    item: str
    key: str
    call: str
    body: dict[str, Any]


@dataclass
class Upstream:
    """A provider and tools that do what they are told and note it: an action is told from others by its item, `i` and a number."""

    url: str = ""
    log: list[Sent] = field(default_factory=list)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        last = body["messages"][-1]
        said = last["content"]
        found = re.search(r"\bi\d+\b", said)
        assert found is not None, body
        item = found[0]
        self.log.append(Sent("model", item, "", request.headers["x-client-request-id"].rpartition(".")[0], body))
        proposed = re.match(r"propose (\S+) ", said) if last["role"] == "user" else None
        message: dict[str, Any] = {"role": "assistant", "content": None if proposed else f"done {said}"}
        if proposed:
            arguments = json.dumps({"item": item, "amount": 5})
            message["tool_calls"] = [{"index": 0, "id": f"call_{item}_{len(self.log)}", "type": "function",
                                      "function": {"name": proposed[1], "arguments": arguments}}]
        reason = "tool_calls" if proposed else "stop"
        head = {"id": f"chatcmpl-{len(self.log)}", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        words = re.findall(r"\S+\s*", message["content"]) if message["content"] else []
        deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant"}, None), *(({"content": word}, None) for word in words)]
        deltas += [({"tool_calls": message["tool_calls"]}, None)] if proposed else []
        for delta, finish in [*deltas, ({}, reason)]:
            event = {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(0.001)
        await response.write(b"data: [DONE]\n\n")
        return response

    async def tool(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = request.match_info["name"]
        call = request.headers["x-client-request-id"].rpartition(".")[0]
        self.log.append(Sent(name, body["item"], request.headers.get("idempotency-key", ""), call, body))
        await asyncio.sleep(0.001)
        if body["amount"] % 10 == 7:
            return web.json_response({"detail": f"no luck with {body['item']}"}, status=422)
        return web.json_response({"did": body})


@pytest.fixture
async def upstream(aiohttp_server: Callable[[web.Application], Awaitable[TestServer]]) -> Upstream:
    made, app = Upstream(), web.Application()
    app.router.add_post("/v1/chat/completions", made.chat)
    app.router.add_post("/tools/{name}", made.tool)
    made.url = str((await aiohttp_server(app)).make_url(""))
    return made


@dataclass
class Doomed:
    """One gateway process. `place` is where it died, as far as it could say."""

    number: int
    port: int
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    place: str = ""
    line: asyncio.StreamWriter | None = None
    pid: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def listen(self, reader: asyncio.StreamReader) -> None:
        """Until it is dead: then the kernel has closed its end."""
        while line := (await reader.readline()).decode().strip():
            if line == "ready":
                self.ready.set()
            else:
                self.place = line
        self.gone.set()
        self.ready.set()


@dataclass
class Nursery:
    """Where gateway processes come from: one that has everything imported, and forks."""

    folder: Path
    process: asyncio.subprocess.Process
    epoch_ns: int = field(default_factory=time.time_ns)
    born: dict[int, Doomed] = field(default_factory=dict)
    held: dict[int, socket.socket] = field(default_factory=dict)

    def port(self) -> int:
        """An address for gateways that come one after another: nobody else is given it, and nobody listens there between two of them."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        self.held[port] = sock
        return port

    async def start(self, port: int, folder: Path, **plan: Any) -> Doomed:
        """Start a gateway, and wait until it is ready, or dead before that."""
        made = Doomed(len(self.born), port)
        self.born[made.number] = made
        told = {"id": made.number, "port": port, "folder": str(folder), "epoch_ns": self.epoch_ns, **plan}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(told).encode() + b"\n")
        async with asyncio.timeout(STARTS_S):
            await made.ready.wait()
        assert not made.gone.is_set() or made.place, "a gateway did not start, and said on standard error why"
        return made

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, pid = (await reader.readline()).split()
        made = self.born[int(number)]
        made.line, made.pid = writer, int(pid)
        await made.listen(reader)
        writer.close()


@pytest.fixture
async def nursery(tmp_path: Path) -> AsyncIterator[Nursery]:
    async with AsyncExitStack() as stack:
        address = str(tmp_path / "line")
        process = await asyncio.create_subprocess_exec(sys.executable, str(DOOMED), address, stdin=asyncio.subprocess.PIPE)
        made = Nursery(tmp_path, process)
        server = await asyncio.start_unix_server(made.welcome, address)
        stack.push_async_callback(server.wait_closed)
        stack.callback(server.close)
        yield made
        for each in made.born.values():
            if not each.gone.is_set() and each.line is not None:
                each.line.close()
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), STARTS_S)
        for sock in made.held.values():
            sock.close()
