"""Supervisor and worker over a real socket pair: every question has an answer in bounded time, whoever goes away."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.cli import supervisor, worker
from gateway.cli.process import Signalled
from gateway.cli.serve import _serve_under_supervision
from gateway.cli.supervisor import Attached
from gateway.cli.tie import Tie
from gateway.cli.worker import Worker
from gateway.embed import Gateway
from gateway.errors import Overloaded

SOON_S = 20


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Tie, Tie]]:
    one, two = [await Tie.hold(each) for each in socket.socketpair()]
    yield one, two
    one.cut()
    two.cut()


async def test_messages_arrive_whole_and_in_order_however_long_they_are(ends):
    one, two = ends
    sent = [{"n": 1}, {"text": "ü" * 1_000_000}, {"n": 2}]
    for message in sent:
        one.send(message)
    assert [await asyncio.wait_for(two.receive(), SOON_S) for _ in sent] == sent


async def test_the_end_of_the_other_side_is_learnt_at_once_even_within_a_message():
    ours, theirs = socket.socketpair()
    tie = await Tie.hold(ours)
    theirs.sendall(b"\0\0\0\xffhalf")
    theirs.close()
    assert await asyncio.wait_for(tie.receive(), SOON_S) is None
    tie.send({"to": "nobody"})
    tie.cut()


async def test_the_first_word_of_a_worker_is_that_it_is_ready_also_where_a_reload_was_asked_for_while_it_started(ends, tmp_path):
    here, there = ends
    (tmp_path / "config.toml").write_text('[providers.one]\nadapter = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n[store]\npath = ":memory:"\n[auth]\nrequired = false\n')
    for folder in ("routes", "policies"):
        (tmp_path / folder).mkdir()
    (tmp_path / "routes/routes.toml").write_text('[[route]]\nname = "fast"\ntargets = [{ provider = "one", model = "m" }]\n')
    hang_up, stop = Signalled(signal.SIGHUP), asyncio.Event()
    hang_up._came.set()
    async with Gateway(tmp_path / "config.toml", port=0, environ={}) as gateway:
        serving = asyncio.create_task(_serve_under_supervision(gateway.running, there, hang_up, stop))
        assert await asyncio.wait_for(here.receive(), SOON_S) == {"ready": True, "drain_s": 30.0}
        assert await asyncio.wait_for(here.receive(), SOON_S) == {"ask": 1}
        stop.set()
        await asyncio.wait_for(serving, SOON_S)


async def test_a_worker_reloads_when_it_is_told_and_answers_by_number(ends):
    here, there = ends

    async def report() -> dict[str, Any]:
        return {"ok": True}

    serving = asyncio.create_task(Worker(there, report, drain_s=30.0).serve())
    here.send({"reload": 3})
    here.send({"reload": 4})
    answers = [await asyncio.wait_for(here.receive(), SOON_S) for _ in range(2)]
    assert answers == [{"done": 3, "report": {"ok": True}}, {"done": 4, "report": {"ok": True}}]
    here.cut()
    await asyncio.wait_for(serving, SOON_S)


async def test_a_defect_in_a_reload_is_answered_too(ends):
    here, there = ends
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))

    async def report() -> dict[str, Any]:
        raise ZeroDivisionError

    serving = asyncio.create_task(Worker(there, report, drain_s=30.0).serve())
    here.send({"reload": 1})
    answer = await asyncio.wait_for(here.receive(), SOON_S)
    assert answer is not None
    assert (answer["done"], answer["report"]["ok"], answer["report"]["code"]) == (1, False, "internal_error")
    here.cut()
    await asyncio.wait_for(serving, SOON_S)
    async with asyncio.timeout(SOON_S):
        while not told:
            await asyncio.sleep(0)
    assert isinstance(told[0]["exception"], ZeroDivisionError)


async def test_a_worker_that_asks_gets_the_reports_of_all(ends):
    here, there = ends

    async def report() -> dict[str, Any]:
        raise NotImplementedError

    asking = Worker(there, report, drain_s=30.0)
    serving = asyncio.create_task(asking.serve())
    questions = [asyncio.create_task(asking.everywhere()) for _ in range(2)]
    asked = [(await asyncio.wait_for(here.receive(), SOON_S) or {})["ask"] for _ in questions]
    here.send({"told": 99, "reports": []})  # nobody's question
    for number in reversed(asked):
        here.send({"told": number, "reports": [{"n": number}]})
    assert await asyncio.wait_for(asyncio.gather(*questions), SOON_S) == [[{"n": 1}], [{"n": 2}]]
    here.cut()
    await asyncio.wait_for(serving, SOON_S)


async def test_a_supervisor_that_does_not_answer_is_not_waited_for_for_ever(ends, monkeypatch):
    _here, there = ends
    monkeypatch.setattr(worker, "RELOAD_S", -5.0)

    async def report() -> dict[str, Any]:
        raise NotImplementedError

    with pytest.raises(Overloaded, match="have not all answered"):
        await Worker(there, report, drain_s=30.0).everywhere()


@pytest.mark.parametrize(("goes", "message"), [(True, "The worker ended."), (False, "The worker did not answer in time.")])
async def test_a_worker_that_says_nothing_is_reported_in_its_place(ends, monkeypatch, goes, message):
    here, there = ends
    attached = Attached(7, here, 30.0)
    listening = asyncio.create_task(attached.listen(lambda question: None))  # noqa: ARG005 - nobody asks
    if goes:
        there.cut()
    else:
        monkeypatch.setattr(supervisor, "RELOAD_S", 0.01)
    told = await asyncio.wait_for(attached.reload(1), SOON_S)
    assert told == {"pid": 7, "ok": False, "code": "internal_error", "message": message, "problems": []}
    there.cut()
    await asyncio.wait_for(listening, SOON_S)


async def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(ends, monkeypatch):
    here, there = ends
    attached = Attached(7, here, 30.0)
    listening = asyncio.create_task(attached.listen(lambda question: None))  # noqa: ARG005 - nobody asks
    with monkeypatch.context() as short:
        short.setattr(supervisor, "RELOAD_S", 0.0)
        await attached.reload(1)
    second = asyncio.create_task(attached.reload(2))
    there.send({"done": 1, "report": {"n": 1}})
    there.send({"done": 2, "report": {"n": 2}})
    assert await asyncio.wait_for(second, SOON_S) == {"n": 2}
    there.cut()
    await asyncio.wait_for(listening, SOON_S)
