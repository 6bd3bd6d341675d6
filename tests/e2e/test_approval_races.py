"""Everything at the same moment: presenters, approvers, time, withdrawals and processes race for one approval, and it is used at most once."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from gateway.app import Parts
from gateway.clock import SystemClock
from gateway.embed import Gateway

RACERS = 64
SOON_S = 30
ROUNDS = range(8)
CHAT = "/v1/chat/completions"
RULE = """
[defaults]
tools = "allow"
[[rule]]
id = "looked-at"
when = 'texts.exists(text, text.contains("plan"))'
effect = "require_approval"
quorum = {quorum}
approval = {{ mode = "{mode}", expires = "1h" }}
[[rule]]
id = "tools-ok"
phase = "tool_call"
effect = "allow"
[[rule]]
id = "tools"
phase = "tool_call"
match = {{ tools = ["*"] }}
effect = "require_approval"
approval = {{ mode = "{mode}", expires = "1h" }}
"""
TOOL = """
[[tool]]
name = "pay"
method = "POST"
url = "{root}/tools/pay"
effect = "{effect}"
private = true
[tool.arguments]
required = ["amount"]
[tool.arguments.properties]
amount = {{ type = "integer" }}
"""


def rules(quorum: int = 1, mode: str = "release") -> str:
    return RULE.format(quorum=quorum, mode=mode)


def asked(*, stream: bool) -> dict[str, Any]:
    return {"model": "fast", "messages": [{"role": "user", "content": "say The plan"}], **({"stream": True} if stream else {})}


class WallByHand(SystemClock):
    """The wall stands where it is put, so that two things happen in the same nanosecond; durations are real."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = super().now_ns()

    def now_ns(self) -> int:
        return self.now


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    seed = getattr(request, "param", None)
    seed = random.randrange(2**32) if seed is None else seed
    print(f"seed {seed}")
    return random.Random(seed)


async def present(house, body: Any, path: str = CHAT, url: str = "") -> tuple[int, str]:
    """Present an action until it is known what comes of it: the status, and the words of the answer or the code of the error."""
    session = await house.http()
    async with asyncio.timeout(SOON_S):
        while True:
            async with session.post(url + path, json=body, headers={"Authorization": f"Bearer {house.key}"}) as answer:
                raw, again = await answer.read(), answer.headers.get("X-Should-Retry") == "true"
            if not again and b"approval_pending" not in raw:
                return answer.status, words(raw)


async def once(house, body: Any, url: str = "") -> tuple[int, str]:
    """Present an action and never come back."""
    session = await house.http()
    async with asyncio.timeout(SOON_S), session.post(url + CHAT, json=body, headers={"Authorization": f"Bearer {house.key}"}) as answer:
        return answer.status, words(await answer.read())


def words(raw: bytes) -> str:
    if raw.startswith((b"data:", b":")):
        events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith(b"data: {")]
        return "".join(each["error"]["code"] if "error" in each else each["choices"][0]["delta"].get("content") or ""
                       for each in events if "error" in each or each["choices"])
    told = json.loads(raw)
    if "choices" in told:
        return str(told["choices"][0]["message"]["content"])
    return str(told.get("code") or (told.get("error") or {}).get("code") or raw)


async def all_wait(house, count: int) -> None:
    waiting = house.gateway.running.proxy.holding.waiting

    async def look() -> bool:
        return len(waiting) == count

    await house.until(look)


async def cast(house, ticket: dict[str, Any], by: str, verdict: str = "approve", url: str = "") -> int:
    """A vote, whatever comes of it."""
    session = await house.http()
    body = {"verdict": verdict, "digest": ticket["digest"]}
    async with session.post(f"{url}/-/approvals/{ticket['id']}/vote", json=body, headers={"Authorization": f"Bearer {house.tokens[by]}"}) as answer:
        await answer.read()
        return int(answer.status)


def events(house) -> Counter[str]:
    return Counter(event for (event,) in house.sql("SELECT event FROM approval_events"))


@pytest.mark.parametrize("streams", [0, RACERS, RACERS // 2], ids=["plain", "streams", "both"])
async def test_of_many_who_present_one_action_each_has_the_one_answer(house, streams):
    await house.open(policies=rules())
    racers = [asyncio.create_task(present(house, asked(stream=number < streams))) for number in range(RACERS)]
    await all_wait(house, RACERS)
    await house.vote(await house.ticket())
    assert Counter(await asyncio.gather(*racers)) == {(200, "The plan"): RACERS}
    assert len(house.one.requests) == 1
    assert events(house)["claim"] == 1
    house.assert_doctor_is_content()


@pytest.mark.parametrize("effect", ["at_most_once", "idempotent"])
@pytest.mark.parametrize("mode", ["release", "execute"])
async def test_of_many_who_call_one_tool_each_has_the_one_answer(house, effect, mode):
    await house.open(policies=rules(mode=mode), routes=TOOL.format(root=house.one.root, effect=effect))
    racers = [asyncio.create_task(present(house, {"amount": 5}, "/tools/pay")) for _ in range(RACERS)]
    await all_wait(house, RACERS)
    await house.vote(await house.ticket())
    answers = await asyncio.gather(*racers)
    assert len(set(answers)) == 1
    assert answers[0][0] == 200
    assert len(house.one.requests) == 1
    house.assert_doctor_is_content()


async def test_a_grant_of_one_use_lets_one_of_many_calls_go_on(house):
    await house.open(policies=rules(), routes=TOOL.format(root=house.one.root, effect="idempotent"))
    first = asyncio.create_task(present(house, {"amount": 1}, "/tools/pay"))
    await house.vote(await house.ticket(), grant={"for": "1h", "uses": 1})
    assert (await first)[0] == 200
    racers = [asyncio.create_task(present(house, {"amount": 2 + number}, "/tools/pay")) for number in range(16)]
    await all_wait(house, 15)
    done, waiting = await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)
    assert ([each.result()[0] for each in done], len(waiting)) == ([200], 15)
    assert len(house.one.requests) == 2
    for row in await house.tickets():
        await house.vote(row, verdict="deny")
    assert Counter([await each for each in waiting]) == {(403, "approval_denied"): 15}
    house.assert_doctor_is_content()


@pytest.mark.parametrize("quorum", [1, 2])
@pytest.mark.parametrize("dice", ROUNDS, indirect=True)
async def test_of_people_who_vote_at_the_same_moment_as_many_count_as_are_asked(house, dice, quorum):
    await house.open(policies=rules(quorum=quorum))
    await house.people(ada=(), grace=(), linus=(), mary=())
    caller = asyncio.create_task(present(house, asked(stream=dice.random() < 0.5)))
    ticket = await house.ticket()
    people = ["ada", "grace", "linus", "mary"] * 2
    dice.shuffle(people)
    said = await asyncio.gather(*(cast(house, ticket, each) for each in people))
    assert Counter(said) == {200: quorum, 409: len(people) - quorum}
    assert await caller == (200, "The plan")
    assert (events(house)["vote"], events(house)["approve"], events(house)["claim"], len(house.one.requests)) == (quorum, 1, 1, 1)


@pytest.mark.parametrize("dice", ROUNDS, indirect=True)
async def test_where_one_approves_and_one_denies_at_the_same_moment_the_first_of_them_decides(house, dice):
    await house.open(policies=rules())
    await house.people(ada=(), grace=())
    caller = asyncio.create_task(present(house, asked(stream=dice.random() < 0.5)))
    ticket = await house.ticket()
    said = {"ada": "approve", "grace": "deny"}
    order = sorted(said, key=lambda _: dice.random())
    told = dict(zip(order, await asyncio.gather(*(cast(house, ticket, each, said[each]) for each in order)), strict=True))
    assert sorted(told.values()) == [200, 409]
    approved = told["ada"] == 200
    answer = await caller
    assert answer[1] == ("The plan" if approved else "approval_denied")
    assert len(house.one.requests) == approved


@pytest.mark.parametrize("early_ns", [1, 0, -1], ids=["just-in-time", "that-very-nanosecond", "just-late"])
@pytest.mark.parametrize("dice", ROUNDS[:4], indirect=True)
async def test_a_vote_and_the_end_of_its_time_never_both_decide(house, dice, early_ns):
    clock = WallByHand()
    await house.open(policies=rules(), parts=Parts(clock=clock))
    caller = asyncio.create_task(present(house, asked(stream=dice.random() < 0.5)))
    ticket = await house.ticket()
    ((expires_ns,),) = house.sql("SELECT expires_ns FROM approvals")
    clock.now = expires_ns - early_ns
    work: list[Callable[[], Any]] = [lambda: cast(house, ticket, "admin"), *[house.gateway.running.sweeper.sweep] * 3]
    dice.shuffle(work)
    told = [each for each in await asyncio.gather(*(each() for each in work)) if each is not None]
    assert told == [200 if early_ns > 0 else 409]
    assert (await caller)[1] == ("The plan" if early_ns > 0 else "approval_denied")
    assert (events(house)["approve"], events(house)["expire"], len(house.one.requests)) == ((1, 0, 1) if early_ns > 0 else (0, 1, 0))


@pytest.mark.parametrize("dice", ROUNDS, indirect=True)
async def test_a_vote_and_a_withdrawal_never_both_decide(house, dice):
    await house.open(policies=rules(), routes=TOOL.format(root=house.one.root, effect="at_most_once"))
    caller = asyncio.create_task(present(house, {"amount": 5}, "/tools/pay"))
    ticket = await house.ticket()
    session = await house.http()

    async def withdraw() -> int:
        async with session.post(f"/-/tickets/{ticket['id']}/withdraw", json={}, headers={"Authorization": f"Bearer {house.key}"}) as answer:
            await answer.read()
            return int(answer.status)

    voting, leaving = cast(house, ticket, "admin"), withdraw()
    if dice.random() < 0.5:
        voted, left = await asyncio.gather(voting, leaving)
    else:
        left, voted = await asyncio.gather(leaving, voting)
    status, said = await caller
    assert len(house.one.requests) == (status == 200)  # an approved one may still be withdrawn, until it is claimed
    assert (status == 200) == (left == 409)
    assert status == 200 or said == "approval_denied"
    assert voted == 200 or left == 200
    house.assert_doctor_is_content()


@pytest.mark.parametrize("mode", ["release", "execute"])
@pytest.mark.parametrize("dice", ROUNDS, indirect=True)
async def test_of_two_gateways_on_one_file_one_makes_the_approved_call(house, dice, mode):
    await house.open(policies=rules(mode=mode), routes=TOOL.format(root=house.one.root, effect="at_most_once"))
    other = await house.stack.enter_async_context(Gateway(house.folder / "config.toml", port=0, environ=house.environ))
    urls = [house.gateway.url, other.url]
    both = [each.proxy.holding for each in (house.gateway.running, other.running)]
    racers = [asyncio.create_task(present(house, {"amount": 5}, "/tools/pay", url=urls[number % 2])) for number in range(16)]

    async def waiting() -> bool:
        return sum(len(each.waiting) for each in both) == len(racers)

    await house.until(waiting)
    assert await cast(house, await house.ticket(), "admin", url=dice.choice(urls)) == 200
    await asyncio.gather(*(each.performing.catch_up() for each in dice.choices(both, k=8)), *(each.refresh() for each in both))
    answers = await asyncio.gather(*racers)
    assert len(set(answers)) == 1
    assert (answers[0][0], len(house.one.requests), events(house)["claim"]) == (200, 1, 1)
    house.assert_doctor_is_content()


@pytest.mark.parametrize("dice", ROUNDS[:4], indirect=True)
async def test_of_two_gateways_on_one_file_one_streams_and_everybody_has_its_answer(house, dice):
    """Each of them claims in the same moment; whoever is late waits for what the other brings, and need not come back for it."""
    await house.open(policies=rules())
    other = await house.stack.enter_async_context(Gateway(house.folder / "config.toml", port=0, environ=house.environ))
    urls = [house.gateway.url, other.url]
    both = [each.proxy.holding for each in (house.gateway.running, other.running)]
    racers = [asyncio.create_task(once(house, asked(stream=dice.random() < 0.8), url=urls[number % 2])) for number in range(8)]

    async def waiting() -> bool:
        return sum(len(each.waiting) for each in both) == len(racers)

    await house.until(waiting)
    assert await cast(house, await house.ticket(), "admin", url=dice.choice(urls)) == 200
    await asyncio.gather(*(each.refresh() for each in both))
    assert Counter(await asyncio.gather(*racers)) == {(200, "The plan"): len(racers)}
    assert (len(house.one.requests), events(house)["claim"]) == (1, 1)
    house.assert_doctor_is_content()


async def test_who_was_late_in_another_process_asks_anew_where_the_first_one_leaves(house, slow, monkeypatch):
    await house.open(policies=rules(), config=slow.config)
    other = await house.stack.enter_async_context(Gateway(house.folder / "config.toml", port=0, environ=house.environ))
    about_to, claimed = asyncio.Event(), asyncio.Event()
    journals = [each.store.journal for each in (house.gateway.running, other.running)]
    begins = [each.begin for each in journals]

    async def ahead(intent: Any) -> Any:
        await asyncio.wait_for(about_to.wait(), SOON_S)
        return await begins[0](intent)

    async def late(intent: Any) -> Any:
        about_to.set()
        await asyncio.wait_for(claimed.wait(), SOON_S)
        return await begins[1](intent)

    monkeypatch.setattr(journals[0], "begin", ahead)
    monkeypatch.setattr(journals[1], "begin", late)
    body = {**asked(stream=True), "model": "slow"}
    first, second = (asyncio.create_task(once(house, body, url=url)) for url in (house.gateway.url, other.url))
    both = [each.proxy.holding for each in (house.gateway.running, other.running)]

    async def waiting() -> bool:
        return [len(each.waiting) for each in both] == [1, 1]

    async def waits() -> bool:
        return len(both[1].waiting) == 1

    await house.until(waiting)
    before = await house.ticket()
    await house.vote(before)
    await asyncio.wait_for(slow.arrived.acquire(), SOON_S)  # the first has it
    claimed.set()  # and the other one, which was about to, has not
    await house.until(waits)
    first.cancel()
    again = await house.ticket()
    assert [each["id"] for each in await house.tickets("failed")] == [before["id"]]
    slow.go.set()
    await house.vote(again)
    assert await second == (200, "upstream_failed")  # it was asked: this provider has no streams
    assert (len(slow.bodies), events(house)["claim"]) == (2, 2)
    house.assert_doctor_is_content()
