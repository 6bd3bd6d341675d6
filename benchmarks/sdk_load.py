"""A constant load of clients that behave as the official SDKs do: their headers, their deadline, their retries. For outage.py.

An SDK itself costs more CPU than the gateway; what matters of it here is which answers it sends again, and how soon.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

SDK_RETRIES: Final = 2
SDK_STATUSES: Final = (408, 409, 429)  # and every 5xx: what is sent again where `x-should-retry` says nothing
_FIRST_NAP_S, _LONGEST_NAP_S = 0.5, 8.0


@dataclass
class Said:
    """How one request was answered. `code` is the error's, or `cut` for an answer that is not whole, `unreachable`, `client_timeout`."""

    status: int = 0
    code: str = ""
    message: str = ""
    should_retry: str = ""
    target: str = ""

    @property
    def whole(self) -> bool:
        return self.status == 200 and not self.code


@dataclass
class Made:
    """One call as its caller saw it, the SDK's retries included. Times are wall-clock ns."""

    began_ns: int
    stream: bool
    ended_ns: int = 0
    requests: int = 0
    said: Said = field(default_factory=Said)

    @property
    def seconds(self) -> float:
        return (self.ended_ns - self.began_ns) / 1e9


class Load:
    """Calls at a constant rate, whether or not the earlier ones are answered, until it is stopped."""

    def __init__(self, session: aiohttp.ClientSession, dice: random.Random, *, headers: Mapping[str, str], rate: float, deadline_s: float) -> None:
        self.made: list[Made] = []
        self._session = session
        self._dice = dice
        self._headers = {**headers, "X-Stainless-Lang": "python", "X-Stainless-Read-Timeout": f"{deadline_s:g}"}
        self._rate = rate
        self._timeout = aiohttp.ClientTimeout(total=deadline_s)
        self._stopped = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Begin calls until `stop`, then wait for those that are under way."""
        loop = asyncio.get_running_loop()
        began_s, number = loop.time(), 0
        while not self._stopped.is_set():
            task = asyncio.create_task(self._call())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            number += 1
            await asyncio.sleep(max(0.0, began_s + number / self._rate - loop.time()))
        await asyncio.gather(*self._running)

    def stop(self) -> None:
        self._stopped.set()

    async def seen(self, wanted: Callable[[Made], bool], timeout_s: float) -> Made | None:
        """The first call from now on that is as wanted, None where none comes in time."""
        end, looked = time.monotonic() + timeout_s, len(self.made)
        while time.monotonic() < end:
            fresh, looked = self.made[looked:], len(self.made)
            if found := next(filter(wanted, fresh), None):
                return found
            await asyncio.sleep(0.02)
        return None

    async def _call(self) -> None:
        """One call as the SDK makes it; on the list once it has ended."""
        call = Made(time.time_ns(), self._dice.random() < 0.5)
        body = {"model": "backed-up", "messages": [{"role": "user", "content": f"words {self._dice.randrange(5, 25)}"}], "stream": call.stream}
        while True:
            call.said = await self._request(body, call.requests)
            call.requests += 1
            if call.requests > SDK_RETRIES or not self._again(call.said):
                break
            await asyncio.sleep(min(_LONGEST_NAP_S, _FIRST_NAP_S * 2 ** (call.requests - 1)) * (1 - 0.25 * self._dice.random()))
        call.ended_ns = time.time_ns()
        self.made.append(call)

    def _again(self, said: Said) -> bool:
        if said.status in (0, 200):  # never reached, or nothing was said in time; a stream that has begun is not begun again
            return said.code in ("unreachable", "client_timeout") and said.status == 0
        if said.should_retry:
            return said.should_retry == "true"
        return said.status in SDK_STATUSES or said.status >= 500

    async def _request(self, body: dict[str, Any], retries: int) -> Said:
        said = Said()
        headers = {**self._headers, "X-Stainless-Retry-Count": str(retries)}
        try:
            async with self._session.post("/v1/chat/completions", json=body, headers=headers, timeout=self._timeout) as answer:
                said.status, said.target = answer.status, answer.headers.get("X-Lockgate-Target", "")
                said.should_retry = answer.headers.get("X-Should-Retry", "")
                data = await answer.read()
        except TimeoutError:
            said.code = "client_timeout"
        except (aiohttp.ClientError, ConnectionError):
            said.code = "cut" if said.status else "unreachable"
        else:
            _judge(said, data, stream=bool(body["stream"]))
        return said


def _judge(said: Said, data: bytes, *, stream: bool) -> None:
    """Read what the answer says: an error, in an event of the stream too, or whether it is whole."""
    events = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: ")] if stream and said.status == 200 else [data]
    try:
        last = json.loads(events[-2] if events[-1:] == [b"[DONE]"] else events[-1])
    except (IndexError, ValueError):
        said.code, said.message = "cut", data[-200:].decode(errors="replace")
        return
    if "error" in last:
        said.code, said.message = str(last["error"].get("code") or last["error"].get("type")), str(last["error"].get("message", ""))
    elif stream and events[-1:] != [b"[DONE]"]:
        said.code = "cut"
