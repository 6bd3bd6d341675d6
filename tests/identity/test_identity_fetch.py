"""What identity providers are asked: where to, for how long, and what is kept of it."""

import asyncio
import contextlib
from typing import Any

import pytest
from aiohttp import web

from gateway.identity import fetch
from gateway.identity.fetch import Fetcher, FetchError, Kept
from gateway.upstream.lean_transport import LeanTransport


@pytest.fixture
async def transport():
    made = LeanTransport()
    yield made
    await made.close()


class Untouched:
    """A transport that nothing may be sent with."""

    async def send(self, request: Any, **_deadlines: float) -> Any:
        raise AssertionError(request)

    async def close(self) -> None:
        """Nothing is open."""


async def test_without_tls_only_a_private_provider_is_asked():
    with pytest.raises(FetchError, match="not https"):
        await Fetcher(Untouched(), private=False).get("http://id.example/keys?secret=1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254"])
async def test_an_address_that_is_not_public_is_not_connected_to(transport, host):
    """Else whoever answers for a provider's name could have us ask the machine's own services."""
    with pytest.raises(FetchError, match=r"connect|not public|address"):
        await Fetcher(transport, private=False).get(f"https://{host}:1/keys")


async def test_what_stands_in_a_query_is_not_told(provider, transport):
    with pytest.raises(FetchError) as caught:
        await Fetcher(transport, private=True).get(f"{provider.url}/nothing?token=secret")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("answer", [lambda: web.json_response({}, status=404), lambda: web.json_response({}, status=206)])
async def test_only_200_is_an_answer(provider, transport, answer):
    async def answering(_request):
        return answer()

    provider.answers["/keys"] = answering
    with pytest.raises(FetchError, match="answered"):
        await Fetcher(transport, private=True).get(f"{provider.url}/keys")


async def test_a_provider_that_trickles_is_given_up(provider, transport, monkeypatch):
    monkeypatch.setattr(fetch, "_TOTAL_S", 0.2)
    over = asyncio.Event()

    async def trickling(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b" ")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 0.01)
                break
        return response

    provider.answers["/keys"] = trickling
    with pytest.raises(FetchError, match="did not answer in"):
        await Fetcher(transport, private=True).get(f"{provider.url}/keys")
    over.set()


async def test_what_is_being_fetched_when_the_gateway_stops_is_left(clock, log):
    begun, over = asyncio.Event(), asyncio.Event()

    async def never() -> int:
        begun.set()
        await over.wait()
        return 1

    kept = Kept(never, clock, log, "x")
    await kept.close()  # nothing is under way
    kept.begin()
    await begun.wait()
    await asyncio.wait_for(kept.close(), 10)
    assert (kept.value, kept.is_fresh) == (None, False)


async def test_a_defect_is_not_taken_for_an_answer(clock, log):
    async def broken() -> int:
        raise RuntimeError("a defect")

    kept = Kept(broken, clock, log, "x")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await kept.refresh()
        clock.move(31)
    assert kept.value is None
