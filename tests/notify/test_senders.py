"""One try of one notice: a 2xx means that it has arrived; everything else is a failure that says what and not where."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.notify.channels import Channel
from gateway.notify.mail import Mailer
from gateway.notify.messages import notice_of
from gateway.notify.senders import Senders
from gateway.notify.undelivered import UndeliveredError
from gateway.upstream.lean_transport import LeanTransport

NOW_NS = 1_790_000_000_000_000_000
SOON_S = 20


@dataclass
class Receiver:
    """A receiver of HTTP that does as a test says."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    drips: bool = False
    hangs: bool = False
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.got.append((request.path_qs, {name.lower(): value for name, value in request.headers.items()}, await request.read()))
        if self.hangs:
            await asyncio.wait_for(self.go.wait(), SOON_S)
        if not self.drips:
            return web.Response(status=self.status, headers=self.headers, body=self.body)
        response = web.StreamResponse(status=self.status)
        await response.prepare(request)
        await response.write(b"o")
        await asyncio.wait_for(self.go.wait(), SOON_S)
        return response


@dataclass
class Scene:
    senders: Senders
    receiver: Receiver
    url: str
    mailer: Any


@pytest.fixture
async def scene(aiohttp_server: Callable[[web.Application], Awaitable[TestServer]], heard, clock) -> AsyncIterator[Scene]:
    receiver, app = Receiver(), web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.answer)
    server = await aiohttp_server(app)
    transport, mailer = LeanTransport(), Mailer()
    yield Scene(Senders(transport, mailer, heard, clock), receiver, str(server.make_url("/in?thread=1")), mailer)
    receiver.go.set()
    await transport.close()
    mailer.close()


@pytest.fixture
def send(scene, ticket):
    async def once(channel: Channel) -> None:
        async with asyncio.timeout(SOON_S):
            await scene.senders.send(notice_of(ticket(), "opened", channel, NOW_NS), channel)
    return once


async def failed(send: Any, channel: Channel) -> UndeliveredError:
    with pytest.raises(UndeliveredError) as caught:
        await send(channel)
    return caught.value


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_means_that_it_has_arrived(scene, send, hook, chat, status):
    scene.receiver.status = status
    scene.receiver.body = b"" if status == 204 else b"ok"
    await send(hook(scene.url))
    await send(chat(scene.url))
    (path, headers, body), (_, _, text) = scene.receiver.got
    assert (path, headers["content-type"], json.loads(body)["type"]) == ("/in?thread=1", "application/json", "approval.opened")
    assert json.loads(text)["text"].startswith("*Approval wanted*\nTool: `bank.pay`\n")


async def test_own_headers_are_sent_and_cannot_take_the_place_of_the_signature(scene, send, hook):
    channel = hook(scene.url)
    await send(replace(channel, to=replace(channel.to, headers={"authorization": "Bearer x", "webhook-id": "mine"})))
    headers = scene.receiver.got[0][1]
    assert headers["authorization"] == "Bearer x"
    assert headers["webhook-id"].startswith("ntc_")


@pytest.mark.parametrize("more", [{"body": b"x" * 10_000_000}, {"drips": True}])
async def test_whatever_comes_behind_a_2xx_is_ignored_and_waited_for_a_moment_at_most(scene, send, hook, more, monkeypatch):
    monkeypatch.setattr("gateway.notify.senders._REST_S", 0.05)
    for name, value in more.items():
        setattr(scene.receiver, name, value)
    await send(hook(scene.url))


@pytest.mark.parametrize(("status", "told"), [
    (301, "a redirect, which is not followed"), (307, "a redirect, which is not followed"), (400, "its receiver does not take it"),
    (401, "its receiver does not take it"), (410, "its receiver does not take it"), (500, "its receiver does not take it")])
async def test_any_other_status_is_a_failure_and_a_redirect_leads_nowhere(scene, send, hook, status, told):
    scene.receiver.status = status
    scene.receiver.headers = {"Location": scene.url.replace("/in", "/elsewhere")}
    failure = await failed(send, hook(scene.url))
    assert (failure.cause, failure.message, failure.retry_after_s) == (f"status:{status}", told, 0.0)
    assert [path for path, _headers, _body in scene.receiver.got] == ["/in?thread=1"]


@pytest.mark.parametrize(("said", "waits_s"), [("120", 120.0), ("0", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("-5", 0.0), ("9" * 400, 0.0), ("²", 0.0)])
async def test_a_receiver_may_say_how_long_it_wants_to_be_left_alone(scene, send, hook, said, waits_s):
    scene.receiver.status = 429
    scene.receiver.headers = {"Retry-After": said}
    assert (await failed(send, hook(scene.url))).retry_after_s == waits_s


async def test_a_receiver_that_does_not_answer_is_left_at_a_deadline(scene, send, hook, monkeypatch):
    monkeypatch.setattr("gateway.notify.senders._HEADERS_S", 0.05)
    scene.receiver.hangs = True
    assert (await failed(send, hook(scene.url))).cause == "timeout:headers"


async def test_a_receiver_that_is_not_public_is_not_connected_to_unless_that_is_meant(scene, send, hook, chat):
    for channel in (hook(scene.url), chat(scene.url)):
        assert (await failed(send, replace(channel, to=replace(channel.to, private=False)))).cause == "connect"
    named = hook(scene.url.replace("127.0.0.1", "localhost"))
    assert (await failed(send, replace(named, to=replace(named.to, private=False)))).cause == "connect"
    assert scene.receiver.got == []


async def test_a_failure_does_not_tell_the_path_of_the_receiver(send, hook):
    failure = await failed(send, hook("http://127.0.0.1:9/services/T0/token"))
    assert failure.cause == "connect"
    assert "token" not in failure.message


async def test_mail_that_only_some_of_its_receivers_get_has_arrived_and_that_is_told(scene, send, mailbox, heard, monkeypatch):
    async def takes(_mail: Any, _to: Any) -> int:
        return 1

    monkeypatch.setattr(scene.mailer, "send", takes)
    await send(mailbox(to=("a@example.com", "b@example.com")))
    assert heard.events == [("notice_refused_by_some", {"channel": "ops", "refused": 1, "receivers": 2})]
    scene.senders.close()
