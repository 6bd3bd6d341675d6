"""Streams that wait for people: begun at once and kept alive with comments, then live; or an error event, as the dialect has it."""

import asyncio
import json
from typing import Any

import openai
import pytest

SOON_S = 20
RULE = """
[[rule]]
id = "secret-plans"
when = 'texts.exists(text, text.contains("plan"))'
effect = "require_approval"
message = "Plans are looked at."
"""
QUICK = '[server]\nkeep_alive = "40ms"\n'
ASKED: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": "say The plan is good"}], "stream": True}


async def collected(house: Any, **options: Any) -> tuple[str, Any]:
    """What a streaming client gets: the text, and the head of the answer."""
    client = house.client(**options)
    async with asyncio.timeout(SOON_S):
        raw = await client.chat.completions.with_raw_response.create(**ASKED)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in raw.parse() if chunk.choices]), raw.headers


class Line:
    """A streaming client that reads bytes. `comments` are those that came so far, `data` the events."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.raw = b""

    async def read_until(self, text: bytes, times: int = 1) -> None:
        async with asyncio.timeout(SOON_S):
            while self.raw.count(text) < times:
                piece = await self.answer.content.readany()
                assert piece, self.raw
                self.raw += piece

    async def rest(self) -> bytes:
        async with asyncio.timeout(SOON_S):
            self.raw += await self.answer.content.read()
        return self.raw

    @property
    def data(self) -> list[Any]:
        return [json.loads(line[6:]) for line in self.raw.decode().split("\n") if line.startswith("data: {")]


async def line(house: Any, **headers: str) -> Line:
    session = await house.http()
    answer = await session.post("/v1/chat/completions", json=ASKED, headers={"Authorization": f"Bearer {house.key}", **headers})
    assert answer.status == 200, await answer.text()
    return Line(answer)


async def test_a_stream_is_begun_at_once_and_hears_comments_while_people_think(house):
    await house.open(policies=RULE, config=QUICK)
    stream = await line(house)
    ticket = await house.ticket()
    assert (stream.answer.headers["X-Lockgate-Approval"], stream.answer.headers["X-Lockgate-Decision"]) == (ticket["id"], "held")
    assert stream.answer.headers["Content-Type"].startswith("text/event-stream")
    assert stream.answer.headers["X-Accel-Buffering"] == "no"
    await stream.read_until(b": waiting\n\n", 3)
    assert stream.data == []
    assert house.one.requests == []
    await house.vote(ticket)
    raw = await stream.rest()
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in stream.data if each["choices"]) == "The plan is good"
    assert len(stream.data) > 3  # in pieces, as the provider gave them
    assert raw.endswith(b"data: [DONE]\n\n")
    assert b": X-Lockgate-Cost-Usd: 0." in raw
    (sent,) = house.one.requests
    assert sent.body["stream"] is True
    assert (await house.ticket("succeeded"))["result"]["status"] == 200


async def test_the_official_client_reads_the_stream_as_if_nothing_had_been(house):
    await house.open(policies=RULE, config=QUICK)
    task = asyncio.create_task(collected(house))
    await house.vote(await house.ticket())
    text, headers = await task
    assert (text, headers["x-lockgate-decision"]) == ("The plan is good", "held")
    (row,) = await house.calls()
    assert (row["outcome"], row["attempt_count"], row["approval"]) == ("completed", 1, headers["x-lockgate-approval"])


async def test_a_denied_stream_ends_with_the_error_of_the_dialect(house):
    await house.open(policies=RULE, config=QUICK)
    task = asyncio.create_task(collected(house, max_retries=2))
    await house.vote(await house.ticket(), verdict="deny", comment="Never.")
    with pytest.raises(openai.APIError, match="Never") as caught:
        await task
    assert caught.value.code == "approval_denied"
    assert house.one.requests == []
    assert [row["outcome"] for row in await house.calls()] == ["refused"]


async def test_a_stream_that_nobody_decides_on_in_time_ends_with_that_error(house):
    await house.open(policies=RULE + 'approval = { expires = "300ms" }\n', config=QUICK)
    with pytest.raises(openai.APIError, match="Nobody decided in time") as caught:
        await collected(house)
    assert caught.value.code == "approval_denied"


async def test_a_stream_whose_hold_ends_says_so_and_presented_again_goes_on(house):
    await house.open(policies=RULE, config=f'{QUICK}[approvals]\nhold = "150ms"\n')
    with pytest.raises(openai.APIError) as caught:
        await collected(house)
    assert caught.value.code == "approval_pending"
    await house.vote(await house.ticket())
    text, _headers = await collected(house)
    assert text == "The plan is good"
    assert len(house.one.requests) == 1


async def test_two_presenters_of_one_stream_get_the_same_answer_and_one_call_is_sent(house):
    await house.open(policies=RULE, config=QUICK)
    tasks = [asyncio.create_task(collected(house)) for _ in range(2)]
    waiting = house.gateway.running.proxy.holding.waiting

    async def both() -> bool:
        return len(waiting) == 2

    await house.until(both)
    await house.vote(await house.ticket())
    assert [(await task)[0] for task in tasks] == ["The plan is good"] * 2
    assert len(house.one.requests) == 1


async def test_a_stream_and_a_plain_call_of_one_action_share_its_approval_and_its_answer(house):
    """How an answer is brought is no part of what is done."""
    await house.open(policies=RULE, config=QUICK)
    streamed = asyncio.create_task(collected(house))
    plain = asyncio.create_task(house.client().chat.completions.create(**{**ASKED, "stream": False}))
    waiting = house.gateway.running.proxy.holding.waiting

    async def both() -> bool:
        return len(waiting) == 2

    await house.until(both)
    await house.vote(await house.ticket())
    assert (await streamed)[0] == "The plan is good"
    async with asyncio.timeout(SOON_S):
        assert (await plain).choices[0].message.content == "The plan is good"
    assert len(house.one.requests) == 1


@pytest.mark.parametrize(("on_disconnect", "state"), [("leave", "pending"), ("withdraw", "withdrawn")])
async def test_a_reader_that_hangs_up_leaves_its_approval_or_withdraws_it(house, on_disconnect, state):
    await house.open(policies=f'{RULE}approval = {{ on_disconnect = "{on_disconnect}" }}\n', config=QUICK)
    stream = await line(house)
    await stream.read_until(b": waiting\n\n")
    stream.answer.close()
    await house.until(lambda: house.calls(outcome="cancelled"))
    await house.ticket(state)


async def test_a_reader_that_leaves_in_the_middle_of_the_answer_gets_no_second_dispatch(house):
    """The claim was its own. What was approved is used up, whatever of it was read."""
    await house.open(policies=RULE, config=QUICK, routes="""
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast!delay_between_tokens=20ms"
""")
    stream = await line(house)
    await house.vote(await house.ticket())
    await stream.read_until(b"data: {", 2)
    stream.answer.close()
    await house.until(lambda: house.tickets("failed"))
    again = asyncio.create_task(collected(house))
    second = await house.ticket("pending")
    await house.vote(second, verdict="deny")
    with pytest.raises(openai.APIError):
        await again
    assert len(house.one.requests) == 1


async def test_a_restart_ends_a_held_stream_with_a_word_to_come_back(house):
    await house.open(policies=RULE, config=f'{QUICK}drain_timeout = "200ms"\n')
    stream = await line(house)
    ticket = await house.ticket()
    await house.restart()
    raw = await stream.rest()
    error = stream.data[-1]["error"]
    assert (error["code"], ticket["id"] in error["message"]) == ("approval_pending", True), raw
    await house.vote(ticket)
    assert (await collected(house))[0] == "The plan is good"
    assert len(house.one.requests) == 1
