"""Many calls that wait for people at once: every caller gets its own answer, once, and nothing is kept twice (`benchmarks/held.py` in short)."""

import asyncio
import gc
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "benchmarks/held.py"
CALLS, LETTERS = 40, 100_000
SOON_S = 30
RULE = '[[rule]]\nid = "held"\neffect = "require_approval"\nmessage = "A person looks at this."\n'


async def test_every_caller_of_many_gets_its_own_answer_once_though_the_gateway_dies():
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), "--json", "--calls", "200", "--votes", "10", "--seconds", "0", cwd=SCRIPT.parents[1],
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await asyncio.wait_for(process.communicate(), 110)
    assert out, err.decode()
    report = json.loads(out)
    print(f"{report['a_call_kb']} KB a call")  # not judged: with so few of them, what a process takes once is a large part of it
    assert report["answered"] == 200
    assert [said for said in report["broken"] if not said.startswith("a held call takes")] == []


def request_of(number: int, key: str, letters: int) -> bytes:
    asked: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": f"{number} {'x' * letters}"}], "stream": number % 2 == 1}
    body = json.dumps(asked)
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {key}", "Content-Type: application/json",
             f"Content-Length: {len(body)}", "", body)
    return "\r\n".join(lines).encode()


async def test_what_a_held_call_says_is_in_memory_once(house):
    """With 100,000 letters: the parsed body, and neither the bytes that came nor the ticket's copy of them."""
    await house.open(policies=RULE)
    host, port = house.gateway.url.removeprefix("http://").split(":")
    waiting = house.gateway.app.proxy.holding.waiting
    transports: list[asyncio.Transport] = []

    async def come(count: int, letters: int) -> None:
        for _ in range(count):
            transport, _protocol = await asyncio.get_running_loop().create_connection(asyncio.Protocol, host, int(port))
            transport.write(request_of(len(transports), house.key, letters))
            transports.append(transport)
        async with asyncio.timeout(SOON_S):
            while len(waiting) < len(transports):
                await asyncio.sleep(0)

    async def taken(count: int) -> int:
        """The memory that is taken once so many more wait."""
        await come(count, LETTERS)
        await come(4, 1)  # the store's threads remember what they did last
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = await taken(4)  # what the first ones have the gateway load is none of a call's
        each = (await taken(CALLS) - before) / CALLS
    finally:
        tracemalloc.stop()
        for transport in transports:
            transport.close()
    print(f"{each:.0f} bytes a call")
    assert LETTERS < each < 1.5 * LETTERS
