"""People are told that something waits: signed, once, by every kind of channel, and whatever their receivers do in between."""

import asyncio
import base64
import email
import email.policy
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiosmtpd.smtp import SMTP, Envelope, Session

from gateway.app import Parts
from gateway.clock import SystemClock
from gateway.store.database import open_writable

SOON_S = 20
KEY = base64.b64encode(b"thirty-two bytes of a signing key").decode()
TOKEN = "T024BE7LD-B0HJ3KQ9Z-xyzzyxyzzy"
QUESTION = "say transfer 9000 to Ann's very secret account"
RULE = """
[[rule]]
id = "secret-plans"
effect = "require_approval"
message = "Plans are looked at."
"""


class Wound(SystemClock):
    """Real time, which a test can put forward: whoever sleeps till then wakes up."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._turned = asyncio.Event()

    def now_ns(self) -> int:
        return super().now_ns() + round(self.ahead_s * 1e9)

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s

    async def sleep(self, seconds: float) -> None:
        until_s = self.monotonic() + seconds
        while (left_s := until_s - self.monotonic()) > 0:
            try:
                await asyncio.wait_for(self._turned.wait(), left_s)
            except TimeoutError:
                return

    def turn(self, seconds: float) -> None:
        self.ahead_s += seconds
        before, self._turned = self._turned, asyncio.Event()
        before.set()


def verified(headers: dict[str, str], body: bytes, key: str) -> dict[str, Any]:
    """A webhook as its receiver reads it, after the text of standardwebhooks.com: who says so, when, and what."""
    signed = headers["webhook-id"].encode() + b"." + headers["webhook-timestamp"].encode() + b"." + body
    expected = hmac.new(base64.b64decode(key), signed, hashlib.sha256).digest()
    given = [base64.b64decode(each.partition(",")[2]) for each in headers["webhook-signature"].split(" ") if each.startswith("v1,")]
    assert any(hmac.compare_digest(each, expected) for each in given)
    told: dict[str, Any] = json.loads(body)
    return told


@dataclass
class Receiver:
    """A receiver of webhooks that answers as a test says; `then` is done when one has come, before it is answered."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    then: Callable[[], None] | None = None
    came: asyncio.Condition = field(default_factory=asyncio.Condition)
    got: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        if self.then is not None:
            self.then()
        async with self.came:
            self.got.append((request.path, {name.lower(): value for name, value in request.headers.items()}, body))
            self.came.notify_all()
        status = self.statuses.pop(0) if self.statuses else 204
        return web.Response(status=status, headers={"Location": "/elsewhere"} if 300 <= status < 400 else {})

    async def count(self, number: int) -> None:
        """Wait until so many have come."""
        async with asyncio.timeout(SOON_S), self.came:
            await self.came.wait_for(lambda: len(self.got) >= number)

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for _path, headers, _body in self.got]

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _path, _headers, body in self.got]


@pytest.fixture
async def receiver(aiohttp_server: Callable[[web.Application], Awaitable[TestServer]]) -> Receiver:
    made, app = Receiver(), web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    server = await aiohttp_server(app)
    made.url = str(server.make_url("/"))
    return made


def hook(receiver: Receiver, name: str = "hook", **more: str) -> str:
    settings = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'[notify.{name}]\nkind = "webhook"\nurl = "{receiver.url}in/{name}"\nsecret = "env:HOOK"\nprivate = true\n{settings}'


ALL = '["opened", "reminder", "escalated", "decided", "expired", "unknown"]'


@pytest.fixture
def opened(house, receiver):
    """Open the gateway with a webhook, or other channels, on a clock that can be put forward."""
    async def open_it(config: str = "", rule: str = RULE) -> tuple[Any, Wound]:
        house.environ |= {"HOOK": f"whsec_{KEY}", "CHAT": f"{receiver.url}services/{TOKEN}"}
        clock = Wound()
        await house.open(config=config or hook(receiver), policies=rule, parts=Parts(clock=clock))
        return house, clock
    return open_it


async def held(house: Any, text: str = QUESTION) -> dict[str, Any]:
    """Ask for something that people have to look at, and come back later: its ticket."""
    session = await house.http()
    headers = {"Authorization": f"Bearer {house.key}", "Prefer": "respond-async"}
    body = {"model": "fast", "messages": [{"role": "user", "content": text}]}
    async with session.post("/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == 202, await answer.text()
        told: dict[str, Any] = json.loads(await answer.read())
        return told


async def settled(house: Any, clock: Wound, done: Callable[[list[Any]], bool]) -> list[Any]:
    """The outbox, once it is as it should be: time goes on a little while it is not."""
    async def look() -> list[Any]:
        clock.turn(1)
        rows = list(await house.gateway.running.store.outbox.list(1000))
        return rows if done(rows) else []

    found: list[Any] = await house.until(look)
    return found


def told(number: int) -> Callable[[list[Any]], bool]:
    """So many notices have been delivered."""
    return lambda rows: sum(bool(each["done_ns"]) for each in rows) == number


async def test_a_held_call_is_told_with_a_signature_and_nothing_of_its_words(opened, receiver):
    house, clock = await opened()
    await held(house)
    clock.turn(1)
    await receiver.count(1)
    (path, headers, body), = receiver.got
    told = verified(headers, body, KEY)
    (row,) = await house.tickets()
    assert (path, told["type"], told["data"]["approval"], told["data"]["state"]) == ("/in/hook", "approval.opened", row["id"], "pending")
    assert (told["data"]["rule"], told["data"]["message"], told["data"]["route"], told["data"]["team"]) == (
        "secret-plans", "Plans are looked at.", "fast", "blue")
    assert told["data"]["link"].endswith(f"/-/admin#/approvals/{row['id']}")
    assert abs(int(headers["webhook-timestamp"]) - clock.now_ns() / 1e9) < SOON_S
    assert row["digest"].startswith(told["data"]["digest"])
    assert b"Ann" not in body
    with pytest.raises(AssertionError):
        verified(headers, body.replace(b"pending", b"approved"), KEY)


async def test_following_the_link_of_a_notice_decides_nothing(opened, receiver):
    house, clock = await opened()
    await held(house)
    clock.turn(1)
    await receiver.count(1)
    (row,) = await house.tickets()
    session = await house.http()
    for url in (f"/-/admin#/approvals/{row['id']}", f"/-/approvals/{row['id']}", f"/-/approvals/{row['id']}/vote"):
        async with session.get(url) as answer:
            assert answer.status != 200 or answer.content_type == "text/html"
    assert [each["state"] for each in await house.tickets("all")] == ["pending"]


async def test_every_kind_of_channel_is_told(opened, receiver):
    mails: list[Any] = []

    class Post:
        async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - the library's name
            content = envelope.original_content
            assert isinstance(content, bytes)
            mails.append((envelope.rcpt_tos, email.message_from_bytes(content, policy=email.policy.default)))
            return "250 taken"

    server = await asyncio.get_running_loop().create_server(lambda: SMTP(Post()), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    mail = (f'[notify.mail]\nkind = "email"\nhost = "127.0.0.1"\nport = {port}\ntls = "none"\nprivate = true\n'
            'sender = "gate@example.com"\nto = ["a@example.com", "b@example.com"]\n')
    chat = '[notify.chat]\nkind = "slack"\nurl_from = "env:CHAT"\nprivate = true\n'
    house, clock = await opened(hook(receiver) + chat + mail + '[login]\npublic_url = "https://gate.example"\n')
    with closing(server):
        await held(house)
        rows = await settled(house, clock, lambda rows: all(each["done_ns"] for each in rows))
    (ticket,) = await house.tickets()
    assert len(rows) == 3
    link = f"https://gate.example/-/admin#/approvals/{ticket['id']}"
    posts = {path: json.loads(body) for path, _headers, body in receiver.got}
    assert posts[f"/services/{TOKEN}"]["text"].endswith(f"\n<{link}|Open the page>")
    assert posts["/in/hook"]["data"]["link"] == link
    ((to, message),) = mails
    assert to == ["a@example.com", "b@example.com"]
    assert message["Subject"].strip() == "[lockgate] Approval wanted: fast for tests"
    assert link in message.get_content()
    for words in (json.dumps(posts), message.get_content()):
        assert "Ann" not in words


async def test_a_rule_tells_its_own_channels_and_a_channel_hears_what_it_wants(opened, receiver):
    rule = f'{RULE}approval = {{ notify = ["two", "three"] }}\n'
    house, clock = await opened(hook(receiver, "one") + hook(receiver, "two") + hook(receiver, "three", events='["decided"]'), rule)
    await held(house)
    rows = await settled(house, clock, lambda rows: bool(rows) and all(each["done_ns"] for each in rows))
    assert [(each["channel"], each["kind"]) for each in rows] == [("two", "opened")]
    await house.vote(await house.ticket(), verdict="deny")
    rows = await settled(house, clock, told(2))
    assert [path for path, _headers, _body in receiver.got] == ["/in/two", "/in/three"]
    _path, headers, body = receiver.got[1]
    assert verified(headers, body, KEY)["data"]["state"] == "denied"


async def test_a_receiver_that_fails_and_comes_back_has_every_notice_once_in_the_end(opened, receiver):
    house, clock = await opened()
    receiver.statuses = [500, 302, 429, 503]
    for number in range(3):
        await held(house, f"{QUESTION} {number}")
    rows = await settled(house, clock, lambda rows: all(each["done_ns"] for each in rows))
    assert len(rows) == 3
    assert len(set(receiver.ids)) == 3
    assert len(receiver.ids) == 3 + 4
    assert {path for path, _headers, _body in receiver.got} == {"/in/hook"}, "a redirect is not followed"
    for _path, headers, body in receiver.got:
        verified(headers, body, KEY)
    bodies = Counter((headers["webhook-id"], body) for _path, headers, body in receiver.got)
    assert len(bodies) == 3, "an id means one body"


async def test_people_are_reminded_of_what_waits_and_not_of_what_is_decided(opened, receiver):
    house, clock = await opened(rule=f'{RULE}approval = {{ remind = "10m", expires = "1h" }}\n')
    await held(house, "say one")
    await held(house, "say two")
    await settled(house, clock, told(2))
    decided, _waiting = await house.tickets()
    await house.vote(decided, verdict="deny")
    clock.turn(600)
    await settled(house, clock, lambda rows: all(each["done_ns"] for each in rows))
    assert receiver.types == ["approval.opened", "approval.opened", "approval.reminder"]
    assert json.loads(receiver.got[2][2])["data"]["approval"] != decided["id"]


async def test_time_that_is_over_is_told_and_ends_or_goes_on_to_others(opened, receiver):
    rule = (f'{RULE}approvers = ["role:finance"]\n[rule.approval]\nexpires = "10m"\non_expiry = "escalate"\nescalate_to = ["role:lead"]\n'
            'remind = "5m"\n')
    house, clock = await opened(hook(receiver, events=ALL), rule)
    await held(house)
    kinds = ["opened", "reminder", "escalated", "reminder", "expired"]
    for number in range(len(kinds)):
        clock.turn(300 if number else 0)
        await settled(house, clock, told(number + 1))
    assert receiver.types == [f"approval.{kind}" for kind in kinds]
    assert len(set(receiver.ids)) == len(kinds)
    (ticket,) = await house.tickets("expired")
    assert ticket["demands"][0]["stages"] == [{"approvers": ["role:lead"], "quorum": 1}]


async def test_what_became_of_notices_is_counted_and_how_many_wait(opened, receiver):
    house, clock = await opened()
    receiver.statuses = [500]
    await held(house)
    await settled(house, clock, lambda rows: all(each["done_ns"] for each in rows))
    session = await house.http()

    async def metrics() -> str:
        async with session.get("/metrics") as answer:
            text: str = await answer.text()
            return text

    text = await metrics()
    assert 'lockgate_notices_total{channel="hook",outcome="failed"} 1.0' in text
    assert 'lockgate_notices_total{channel="hook",outcome="delivered"} 1.0' in text
    assert "lockgate_approvals_pending 1.0" in text
    await house.vote(await house.ticket(), verdict="deny")

    async def none() -> bool:
        clock.turn(1)
        return "lockgate_approvals_pending 0.0" in await metrics()

    await house.until(none)


async def test_what_is_secret_about_a_channel_stands_nowhere(opened, receiver, tmp_path):
    """Whoever has the address of a chat's webhook can post to it: it is in no row, no line of the log and no answer."""
    chat = '[notify.chat]\nkind = "slack"\nurl_from = "env:CHAT"\nprivate = true\n'
    house, clock = await opened(chat + hook(receiver) + '[notify.chat.headers]\nX-Api-Key = "env:HOOK"\n')
    receiver.statuses = [500, 301, 400, 500]
    await held(house)
    await settled(house, clock, lambda rows: all(each["done_ns"] for each in rows))
    house.environ["CHAT"] = f"http://127.0.0.1:9/{TOKEN}"
    await house.ask("POST", "/-/reload")
    await held(house, "say another")
    rows = await settled(house, clock, lambda rows: any(each["error"] for each in rows))
    assert {each["error"] for each in rows} - {None} <= {"connect", "the channel's receiver has just failed"}
    await house.stop()
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("lockgate.db*")) + b"".join(house.lines)
    for secret in (TOKEN, KEY, KEY.rstrip("=")):
        assert secret.encode() not in kept
    assert b"notice_not_delivered" in kept
    await house.start(0)


async def test_settings_that_change_hold_from_the_next_notice_on(opened, house, receiver):
    house, clock = await opened()
    await held(house, "say one")
    await settled(house, clock, lambda rows: all(each["done_ns"] for each in rows))
    config = (house.folder / "config.toml").read_text()
    (house.folder / "config.toml").write_text(config.replace("in/hook", "in/new"))
    await house.ask("POST", "/-/reload")
    await held(house, "say two")
    await settled(house, clock, told(2))
    assert [path for path, _headers, _body in receiver.got] == ["/in/hook", "/in/new"]


# Real processes.


async def lay(town: Any, receiver: Receiver, upstream: str) -> None:
    await town.lay(upstream, config=hook(receiver).replace("env:HOOK", "file:secrets/hook"))
    (town.folder / "secrets/hook").write_text(f"whsec_{KEY}\n")
    (town.folder / "policies/ask.toml").write_text(RULE)


async def ask(url: str, key: str, text: str) -> None:
    async with aiohttp.ClientSession(url) as session, session.post(
            "/v1/chat/completions", json={"model": "fast", "messages": [{"role": "user", "content": text}]},
            headers={"Authorization": f"Bearer {key}", "Prefer": "respond-async"}) as answer:
        assert answer.status == 202, await answer.text()


async def test_a_process_that_is_killed_once_a_notice_has_left_tells_it_again_under_the_same_id(town, house, receiver):
    await lay(town, receiver, house.one.url)
    key = await town.key()
    process, url = await town.start("serve", "--port", "0")
    receiver.then = process.kill  # it has arrived, and the process never hears of it
    await ask(url, key, QUESTION)
    await receiver.count(1)
    await process.wait()
    receiver.then = None
    with closing(open_writable(town.folder / "lockgate.db", synchronous="normal", busy_timeout_s=5.0)) as database:
        assert database.execute("SELECT done_ns, until_ns > 0 FROM outbox").fetchall() == [(None, 1)]
        database.execute("UPDATE outbox SET until_ns = 1")  # as if its lease had run out
    await town.start("serve", "--port", "0")
    await receiver.count(2)
    assert len(set(receiver.ids)) == 1
    for _path, headers, body in receiver.got:
        verified(headers, body, KEY)


async def test_of_several_workers_one_delivers_each_notice(town, house, receiver):
    await lay(town, receiver, house.one.url)
    key = await town.key()
    process, url = await town.start("serve", "--port", "0", "--workers", "3")
    await asyncio.gather(*(ask(url, key, f"{QUESTION} {number}") for number in range(30)))
    await receiver.count(30)
    process.terminate()
    await asyncio.wait_for(process.wait(), SOON_S)
    assert Counter(Counter(receiver.ids).values()) == {1: 30}
