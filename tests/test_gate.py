"""The gate in a stream: what it lets out, put together, is the judged answer, however the provider cut its chunks."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Reply, Usage
from gateway.core.decision import Redaction
from gateway.core.detectors import pattern_detector
from gateway.errors import AttemptFailed, Forbidden
from gateway.gate import MOST_CALLS, MOST_CHOICES, Listening, Ruling, StreamGate, WholeGate
from gateway.wire.assemble import Assembler
from gateway.wire.protocol import Event
from gateway.wire.tool_calls import Proposed

HEAD = {"id": "x", "object": "chat.completion.chunk", "model": "m"}
REDACTIONS = [Redaction("r", (pattern_detector("secret[0-9]{1,4}"),))]


def one_ruling(asked: Proposed) -> Ruling:
    """Tools whose name begins with `bad` are refused; of others the arguments are what was read."""
    if asked.name.startswith("bad"):
        return Ruling(None, f"no {asked.name}")
    return Ruling(asked.arguments())


async def ruling(asked: Sequence[Proposed]) -> list[Ruling]:
    return [one_ruling(each) for each in asked]


def chunk(delta: dict[str, Any], index: int = 0, finish: str | None = None, **more: Any) -> Event:
    return Event({**HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": finish, **more}]}, finish_reason=finish)


def call_piece(n: int, arguments: str, name: str | None = None, call_id: str | None = None) -> dict[str, Any]:
    function = {"arguments": arguments, **({"name": name} if name else {})}
    return {"tool_calls": [{"index": n, **({"id": call_id, "type": "function"} if call_id else {}), "function": function}]}


async def through(gate: Any, events: list[Event]) -> list[Event]:
    out = [each for event in events for each in await gate.take(event)]
    return [*out, *await gate.end()]


def whole(events: list[Event]) -> list[dict[str, Any]]:
    made = Assembler()
    for event in events:
        if event.body is not None:
            made.add(event.body)
    choices: list[dict[str, Any]] = made.body()["choices"]
    return choices


def gate(withheld: str = "text", *, redact: bool = False, judge: Any = ruling) -> StreamGate:
    return StreamGate(judge, REDACTIONS if redact else (), withheld)


async def test_text_flows_while_a_tool_call_is_held_until_its_choice_has_ended():
    held = gate()
    assert await held.take(chunk({"role": "assistant", "content": "I "})) != []
    assert await held.take(chunk(call_piece(0, '{"a"', "good", "c0"))) == []
    (event,) = await held.take(chunk({"content": "do"}))
    assert event.body is not None
    assert event.body["choices"][0]["delta"] == {"content": "do"}
    assert await held.take(chunk(call_piece(0, ":1}"))) == []
    out = await held.take(chunk({}, finish="tool_calls"))
    assert [event.body["choices"][0]["delta"] for event in out if event.body] == [
        {"tool_calls": [{"index": 0, "id": "c0", "type": "function", "function": {"name": "good", "arguments": '{"a":1}'}}]}, {}]
    assert out[-1].finish_reason == "tool_calls"


async def test_pieces_of_several_calls_may_come_interleaved():
    events = [chunk(call_piece(0, '{"a"', "good0", "c0")), chunk(call_piece(1, '{"b"', "bad1", "c1")), chunk(call_piece(0, ":0}")),
              chunk(call_piece(1, ":1}")), chunk(call_piece(2, "{}", "good2", "c2")), chunk({}, finish="tool_calls")]
    out = await through(gate(), events)
    calls = [call for event in out if event.body for call in event.body["choices"][0]["delta"].get("tool_calls", [])]
    assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "good0"), (2, "good2")]
    assert whole(out)[0]["message"]["content"] == "no bad1"


@pytest.mark.parametrize(("withheld", "message"), [("text", {"content": "no bad"}), ("refusal", {"refusal": "no bad"}), ("drop", {})])
async def test_where_nothing_is_left_to_be_called_the_choice_ends_as_one_without_tools(withheld, message):
    """An application that reads `tool_calls` would look for calls and find none."""
    out = await through(gate(withheld), [chunk(call_piece(0, "{}", "bad", "c0")), chunk({}, finish="tool_calls")])
    assert out[-1].finish_reason == "stop"
    assert out[-1].body is not None
    assert out[-1].body["choices"][0]["finish_reason"] == "stop"
    assert whole(out)[0].get("message", {}) == message


async def test_a_refusal_after_text_stands_in_a_paragraph_of_its_own():
    out = await through(gate(), [chunk({"content": "Paying."}), chunk(call_piece(0, "{}", "bad", "c0"), finish="tool_calls")])
    assert whole(out)[0]["message"]["content"] == "Paying.\n\nno bad"


async def test_the_older_form_is_judged_too():
    pieces = [chunk({"function_call": {"name": "bad", "arguments": ""}}), chunk({"function_call": {"arguments": "{}"}}),
              chunk({}, finish="function_call")]
    assert whole(await through(gate(), pieces))[0]["message"] == {"content": "no bad"}
    pieces[0] = chunk({"function_call": {"name": "good", "arguments": ""}})
    out = await through(gate(), pieces)
    assert whole(out)[0]["message"] == {"function_call": {"name": "good", "arguments": "{}"}}
    assert out[-1].finish_reason == "function_call"


async def test_a_stream_that_ends_without_a_reason_still_has_its_calls_judged():
    out = await through(gate(), [chunk(call_piece(0, "{}", "good", "c0"))])
    assert whole(out)[0]["message"]["tool_calls"][0]["function"]["name"] == "good"


async def test_usage_passes_with_what_is_left_of_its_chunk():
    usage = Usage(1, 2)
    counted = Event({**HEAD, "choices": [{"index": 0, "delta": call_piece(0, "{}", "good", "c0"), "finish_reason": None}],
                     "usage": {"prompt_tokens": 1}}, usage=usage)
    out = await gate().take(counted)
    assert [(event.usage, event.body and event.body["usage"], event.body and event.body["choices"]) for event in out] == [
        (usage, {"prompt_tokens": 1}, [])]
    alone = Event({**HEAD, "choices": [], "usage": {"prompt_tokens": 1}}, usage=usage)
    assert await gate().take(alone) == [alone]
    assert await gate().take(Event(done=True)) == [Event(done=True)]


@pytest.mark.parametrize("choice", [
    "x", {"index": 0, "message": {"tool_calls": []}}, {"index": 0, "delta": {"tool_calls": {"0": {}}}}, {"index": 0, "delta": {"tool_calls": ["x"]}},
    {"index": 0, "delta": {"function_call": "bad"}}, {"index": 0, "delta": {"tool_calls": [{"index": [1]}]}}])
async def test_what_could_hold_a_call_in_no_known_way_ends_the_stream(choice):
    with pytest.raises(AttemptFailed):
        await gate().take(Event({**HEAD, "choices": [choice]}))


async def test_choices_and_calls_are_bounded():
    held = gate()
    with pytest.raises(AttemptFailed):
        for n in range(MOST_CHOICES + 1):
            await held.take(chunk({"content": "a"}, index=n))
    held = gate()
    with pytest.raises(AttemptFailed):
        for n in range(MOST_CALLS + 1):
            await held.take(chunk(call_piece(n, "")))


async def test_a_field_that_may_hold_text_in_an_unknown_way_is_emptied_while_texts_are_redacted():
    out = await through(gate(redact=True), [
        chunk({"role": "assistant", "content": "a secret1 b", "thoughts": ["secret2"], "audio": None}, logprobs={"content": [{"token": "secret1"}]}),
        chunk({}, finish="stop")])
    assert "secret" not in str([event.body for event in out])
    assert whole(out)[0]["message"]["content"] == "a [redacted:pattern] b"


async def test_completions_are_redacted_in_their_text():
    events = [Event({"id": "x", "object": "text_completion", "choices": [{"index": 0, "text": piece, "finish_reason": end}]}, finish_reason=end)
              for piece, end in (("a sec", None), ("ret1 b", None), ("c secret2", "stop"))]
    out = await through(gate(redact=True), events)
    assert whole(out)[0]["text"] == "a [redacted:pattern] bc [redacted:pattern]"
    assert out[-1].finish_reason == "stop"


CONTENT = st.lists(st.sampled_from(["secret", "12", "345 ", "hello ", "sec", "ret7", "\n"]), max_size=12).map("".join)
CALL = st.tuples(st.sampled_from(["good", "bad", "badly", "fine"]), st.dictionaries(st.sampled_from("ab"), st.integers(0, 99) | st.text('xy"', max_size=4), max_size=2))


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in pairwise(edges)]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(content=CONTENT, calls=st.lists(CALL, max_size=4), places=st.lists(st.integers(0, 200), max_size=8), withheld=st.sampled_from(["text", "refusal", "drop"]))
async def test_however_an_answer_is_cut_the_same_comes_out(content, calls, places, withheld):
    """The plain path and the streamed one must not differ in what they let through."""
    def events(cuts: list[int]) -> list[Event]:
        made = [chunk({"role": "assistant", "content": piece}) for piece in cut(content, cuts)]
        for n, (name, arguments) in enumerate(calls):
            pieces = cut(json.dumps(arguments), cuts)
            made.append(chunk(call_piece(n, "", name, f"c{n}")))
            made += [chunk(call_piece(n, piece)) for piece in pieces]
        return [*made, chunk({}, finish="tool_calls" if calls else "stop")]

    at_once = await through(gate(withheld, redact=True), events([]))
    in_pieces = await through(gate(withheld, redact=True), events(places))
    assert [_told(each) for each in whole(in_pieces)] == [_told(each) for each in whole(at_once)]
    assert "bad" not in [call["function"]["name"] for call in whole(in_pieces)[0].get("message", {}).get("tool_calls", [])]


def _told(choice: dict[str, Any]) -> Any:
    message = {name: value for name, value in choice.get("message", {}).items() if value not in ("", [])}
    return message, choice["finish_reason"]


async def test_an_answer_that_is_needed_whole_goes_out_at_its_end_as_it_was_judged():
    seen: list[Reply] = []

    async def judged(reply: Reply) -> Reply:
        seen.append(reply)
        choices = [{**choice, "message": {**choice["message"], "content": "changed"}} for choice in reply.body["choices"]]
        return Reply({**reply.body, "choices": choices}, reply.usage, reply.finish_reasons)

    held = WholeGate(judged)
    usage = Usage(3, 4)
    events = [chunk({"role": "assistant", "content": "one "}), chunk({"content": "two"}), chunk(call_piece(0, "{}", "good", "c0")), chunk({}, finish="tool_calls"),
              Event({**HEAD, "choices": [], "usage": {"prompt_tokens": 3}}, usage=usage)]
    for event in events:
        assert await held.take(event) == []
    out = await held.end()
    assert seen[0].body["choices"][0]["message"]["content"] == "one two"
    assert (seen[0].usage, seen[0].finish_reasons) == (usage, ("tool_calls",))
    first, last = out
    assert first.body == {**HEAD, "choices": [{"index": 0, "finish_reason": "tool_calls", "delta": {"role": "assistant", "content": "changed", "tool_calls": [
        {"index": 0, "id": "c0", "type": "function", "function": {"name": "good", "arguments": "{}"}}]}}]}
    assert first.finish_reason == "tool_calls"
    assert last.usage == usage


async def test_an_answer_that_is_refused_as_a_whole_gives_nothing_out():
    async def judged(_reply: Reply) -> Reply:
        raise Forbidden("no", rule="r")

    held = WholeGate(judged)
    assert await held.take(chunk({"content": "one"})) == []
    with pytest.raises(Forbidden):
        await held.end()


async def test_an_answer_too_long_to_hold_is_refused():
    async def judged(reply: Reply) -> Reply:
        raise AssertionError(reply)

    held = WholeGate(judged)
    for _ in range(5):
        await held.take(chunk({"content": "x" * 1_000_000}))
    with pytest.raises(AttemptFailed):
        await held.end()


async def test_a_listener_hears_the_whole_answer_and_changes_nothing():
    heard: list[Reply] = []

    async def hear(reply: Reply) -> None:
        heard.append(reply)

    listening = Listening(gate(judge=None), hear)
    events = [chunk({"content": "a"}), chunk({"content": "b"}, finish="stop"), Event({**HEAD, "choices": [], "usage": {}}, usage=Usage(1, 1))]
    assert await through(listening, events) == events
    assert heard[0].body["choices"][0]["message"]["content"] == "ab"
    assert (heard[0].usage, heard[0].finish_reasons) == (Usage(1, 1), ("stop",))


@pytest.mark.parametrize("choice", [
    {"index": "0", "delta": {"content": "a"}}, {"index": 1.0, "delta": {"content": "a"}}, {"index": True, "delta": {"content": "a"}},
    {"index": 0, "delta": {"content": "a"}, "tool_calls": [{}]}, {"index": 0, "delta": {"audio": {"function_call": {"name": "bad"}}}},
    {"index": 0, "delta": {"Tool_Calls": [{}]}}, {"index": 0, "delta": {"text": "a"}, "text": "b"}, {"index": 0, "delta": {"tool_calls": [{"index": "0"}]}},
    {"index": 0, "delta": {"tool_calls": [{"index": True}]}}, {"index": 0, "delta": {"tool_calls": [{"index": None}]}}])
async def test_what_a_reader_could_put_together_in_another_way_ends_the_stream(choice):
    with pytest.raises(AttemptFailed):
        await gate(redact=True).take(Event({**HEAD, "choices": [choice]}))


@pytest.mark.parametrize("choices", ["x", ["x"], {"0": {"delta": {"content": "a"}}}, 5])
async def test_choices_that_are_no_list_end_the_stream(choices):
    """A reader that looks for the first of them may find one all the same."""
    with pytest.raises(AttemptFailed):
        await gate().take(Event({**HEAD, "choices": choices}))


async def test_a_call_does_not_go_on_after_it_was_judged():
    """A reader would put the pieces together, and nobody has judged the two as one."""
    held = gate()
    await held.take(chunk(call_piece(0, "{}", "good", "c0"), finish="tool_calls"))
    assert await held.take(chunk(call_piece(1, "{}", "fine", "c1"))) == []
    with pytest.raises(AttemptFailed):
        await held.take(chunk(call_piece(0, "{}", "bad")))


async def test_a_text_that_is_searched_does_not_go_on_after_its_end():
    held = gate(redact=True)
    await held.take(chunk({"content": "sec"}, finish="stop"))
    assert await held.take(chunk({"content": "", "role": "assistant"})) != []
    with pytest.raises(AttemptFailed):
        await held.take(chunk({"content": "ret1"}))
    unsearched = gate()
    await unsearched.take(chunk({"content": "a"}, finish="stop"))
    assert await unsearched.take(chunk({"content": "b"})) != []


async def test_an_end_that_is_empty_is_none():
    """Some servers write one into every chunk."""
    events = [chunk(call_piece(0, '{"a"', "good", "c0"), finish=""), chunk(call_piece(0, ":1}"), finish=""), chunk({"content": "sec"}, finish=""),
              chunk({"content": "ret1"}, finish=""), chunk({}, finish="tool_calls")]
    (choice,) = whole(await through(gate(redact=True), events))
    assert choice["message"]["content"] == "[redacted:pattern]"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'


async def test_a_choice_without_a_number_is_the_first():
    event = Event({**HEAD, "choices": [{"index": None, "delta": {"content": "a"}}]})
    (out,) = await gate().take(event)
    assert out.body is not None
    assert out.body["choices"][0]["index"] == 0


async def test_fields_that_are_not_known_go_while_texts_are_redacted_and_stay_otherwise():
    event = Event({**HEAD, "citations": ["secret1"], "choices": [{"index": 0, "delta": {"content": "a "}, "filters": "secret1", "finish_reason": None}]})
    (kept,) = await gate().take(event)
    assert kept.body == event.body
    (left,) = await gate(redact=True).take(event)
    assert left.body == {**HEAD, "choices": [{"index": 0, "delta": {"content": "a "}, "finish_reason": None}]}
    (alone,) = await gate(redact=True).take(Event({**HEAD, "citations": ["secret1"], "choices": []}))
    assert alone.body == {**HEAD, "choices": []}


async def test_log_probabilities_go_with_the_calls_that_they_spell_out():
    told = {"content": [{"token": "secret1"}]}
    held = gate()
    (before,) = await held.take(chunk({"content": "a"}, logprobs=told))
    assert before.body is not None
    assert before.body["choices"][0]["logprobs"] == told
    out = [await held.take(chunk(call_piece(0, "{}", "bad", "c0"), logprobs=told)), await held.take(chunk({"content": "b"}, logprobs=told)),
           await held.take(chunk({}, finish="tool_calls", logprobs=told))]
    assert "secret" not in str(out)


async def test_a_refusal_is_redacted_as_all_that_is_said():
    """It holds words of the model: the name of the tool, for one."""
    assert whole(await through(gate(redact=True), [chunk(call_piece(0, "{}", "bad-secret1", "c0"), finish="tool_calls")]))[0]["message"] == {
        "content": "no bad-[redacted:pattern]"}


async def test_calls_are_numbered_without_gaps_for_clients_that_count_them():
    counting = StreamGate(ruling, (), "drop", contiguous=True)
    out = await through(counting, [chunk(call_piece(n, "{}", name, f"c{n}")) for n, name in enumerate(["good", "bad", "fine"])] + [chunk({}, finish="tool_calls")])
    calls = [call for event in out if event.body for call in event.body["choices"][0]["delta"].get("tool_calls", [])]
    assert [(call["index"], call["id"]) for call in calls] == [(0, "c0"), (1, "c2")]


async def test_an_answer_of_more_choices_than_are_told_apart_is_not_held():
    async def judged(reply: Reply) -> Reply:
        raise AssertionError(reply)

    held = WholeGate(judged)
    for n in range(MOST_CHOICES + 1):
        await held.take(chunk({"content": "a"}, index=n))
    with pytest.raises(AttemptFailed):
        await held.end()


@pytest.mark.parametrize("calls", [{"0": {}}, "x", 5])
async def test_calls_that_no_rule_judges_are_given_on_as_they_came(calls):
    async def judged(reply: Reply) -> Reply:
        return reply

    held = WholeGate(judged)
    await held.take(chunk({"tool_calls": calls}))
    (event,) = await held.end()
    assert event.body is not None
    assert event.body["choices"][0]["delta"]["tool_calls"] == calls
