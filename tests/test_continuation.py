"""What may be gone on with, how the rest is asked for, and that both together are one answer."""

from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from gateway.call import Call, Principal, Target
from gateway.continuation import Heard, Onward
from gateway.core.estimate import Measure
from gateway.core.plan import Deadlines, Retry, Route, RouteTarget
from gateway.dispatch import Errand
from gateway.progress import Progress
from gateway.relay import HeldStream, kept
from gateway.spending import Spending
from gateway.wire.protocol import Event


def call(operation: str = "chat", **body: Any) -> Call:
    told = {"messages": [{"role": "user", "content": "hi"}]} if operation == "chat" else {"prompt": "Once "}
    return Call("call_x", Principal("k"), "openai", operation, "r", {"model": "r", **told, **body}, stream=True, size=50, received_ns=1)


def chunk(index: int = 0, finish_reason: str | None = None, **delta: Any) -> Event:
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
    return Event({"id": "c1", "created": 5, "model": "m", "object": "chat.completion.chunk", "choices": [choice]})


def errand(made: Call) -> Errand:
    case = Progress(made.id, "openai", made.operation, 0, spending=Spending({}, Measure(50)))
    route = Route("r", frozenset({"chat"}), (RouteTarget(Target("p", "m"), None),), Deadlines(1, 1, 1, 1, 1), Retry(1, 0, 0))
    return Errand(case, made, route, route.deadlines, tries=None, snapshot=None)  # type: ignore[arg-type]


class Live:
    """What a held stream came from."""

    status = 200

    def __init__(self) -> None:
        self.told: list[str] = []

    def abort(self) -> None:
        self.told.append("abort")

    async def to_end(self) -> None:
        self.told.append("to_end")


def heard(*events: Event) -> Heard:
    made = Heard()
    for event in events:
        made.add(event)
    return made


WORDS = (chunk(role="assistant", content=""), chunk(content="It is "), Event(), Event({"choices": None}), chunk(content="well"))


def test_the_rest_is_asked_for_with_what_was_said_as_the_last_message_and_no_more_than_is_left_of_the_limit():
    onward = heard(*WORDS).onward(errand(call(max_tokens=10, max_completion_tokens="many")))
    assert onward.going_on
    assert onward.call.body["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is well"}]
    assert (onward.call.body["max_tokens"], onward.call.body["max_completion_tokens"]) == (8, "many")


def test_an_answer_that_the_client_itself_began_stays_one_message():
    began = call(messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, ", "name": "a"}])
    body = heard(*WORDS).onward(errand(began)).call.body
    assert body["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, It is well", "name": "a"}]


def test_a_prompt_goes_on_with_what_was_written():
    written = heard(Event({"choices": [{"index": 0, "text": "upon a "}]}), Event({"choices": [{"index": 0, "text": "time"}]}))
    assert written.onward(errand(call("completions"))).call.body["prompt"] == "Once upon a time"


def test_what_was_said_is_read_and_paid_for_once_more():
    made = errand(call())
    heard(*WORDS).onward(made)
    assert made.case.spending is not None
    assert made.case.spending.measured.size == 50 + len("It is well")


def test_what_is_said_until_the_next_break_counts_once():
    made, said = errand(call()), heard(*WORDS)
    said.onward(made)
    said.add(chunk(content=", thanks"))
    said.onward(made)
    assert made.case.spending is not None
    assert made.case.spending.measured.size == 50 + len("It is well, thanks")


@pytest.mark.parametrize("events", [
    (), (chunk(role="assistant", content=""),), (*WORDS, chunk(content="x", index=1)), (*WORDS, chunk(finish_reason="stop")),
    (*WORDS, chunk(tool_calls=[{"index": 0, "function": {"name": "pay"}}])), (chunk(reasoning_content="hm"), *WORDS),
    (Event({"choices": [{"index": 0, "delta": "It is"}]}), *WORDS), (*WORDS, Event({"choices": [{"index": 0, "delta": [1]}]})),
    (*WORDS, chunk(refusal="no")), (*WORDS, chunk(content=["a"])), (*WORDS, Event({"choices": ["x"]})), (chunk(content="x" * 2**21),),
    (Event({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": []}}]}), *WORDS),
], ids=["nothing", "only a beginning", "two choices", "has ended", "a tool call", "thoughts", "a text for a delta", "a list for one", "a refusal", "no text", "no choice", "too long",
        "log-probabilities"])
def test_what_the_rest_would_not_fit_to_is_not_gone_on_with(events):
    assert not heard(*events).resumable(call())


def test_what_is_plain_text_so_far_is():
    assert heard(*WORDS).resumable(call())
    assert heard(*WORDS).resumable(call(max_tokens=3))


def test_an_answer_that_is_as_long_as_it_may_be_is_not_gone_on_with():
    assert not heard(*WORDS).resumable(call(max_tokens=2))


@pytest.mark.parametrize(("made", "can"), [
    (call(), True), (call(messages=[{"role": "assistant", "content": "a"}]), True),
    (call(messages=[{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]), False), (call(n=1), True), (call(n=2), False), (call("completions"), True), (call("completions", prompt=["a", "b"]), False),
    (call("embeddings"), False)])
def test_only_a_call_for_one_answer_can_be_gone_on_with(made, can):
    assert Heard.can(made) is can


async def test_both_parts_are_told_as_one_answer():
    done = Event(done=True)
    rest = HeldStream(Live(), deque(kept(each) for each in (  # type: ignore[arg-type]
        replace(chunk(role="assistant", content=" again"), finish_reason="stop"), Event({"choices": []}), Event({"choices": "?"}), Event(), done)))
    onward = Onward(rest, heard(*WORDS).head)
    taken = [onward.take() for _ in range(5)]
    assert onward.status == 200
    assert taken[0] is not None
    assert taken[0].body is not None
    assert taken[0].body["id"] == "c1"
    assert taken[0].body["choices"][0]["delta"] == {"content": " again"}
    assert taken[0].finish_reason == "stop"
    assert taken[-1] == done
    assert onward.take() is None
    await onward.to_end()
    onward.abort()
