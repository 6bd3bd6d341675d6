"""Scenarios 8 to 11, 14 and 17 once the client has seen a first token: an abnormal end is an error in the stream, never a normal end.

Where the route says `on_failure = "continue"`, another target goes on with the answer, and each token comes once.
"""

from dataclasses import dataclass, field

import pytest

from gateway.simulator import Fault, FaultRule, Scenario

TEXT = " ".join(f"word{n}" for n in range(30))
SOON = {"idle": "300ms"}
TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}}}]
CONTINUE = '[route.stream]\non_failure = "continue"\n'
CONTINUES = "continues = true\ncontinue_with = { continue_final_message = true }\n"
STREAMED = pytest.mark.parametrize("stream", [True], ids=["stream"], indirect=True)


@dataclass(frozen=True)
class Scene:
    """A break after some tokens and what the record calls it."""

    number: int
    name: str
    fault: Fault
    cause: str
    deadlines: dict[str, str] = field(default_factory=dict)


SCENES = (
    Scene(8, "reset in mid-stream", Fault(cut_after_chunks=5), "reset"),
    Scene(8, "closed in mid-stream, without an end", Fault(end_after_chunks=5), "cut"),
    Scene(9, "stall in mid-stream", Fault(stall_after_chunks=5), "timeout:idle", SOON),
    Scene(10, "broken JSON in mid-stream", Fault(garbage="json", garbage_after_chunks=5), "malformed"),
    Scene(10, "bytes that are no text in mid-stream", Fault(garbage="bytes", garbage_after_chunks=5), "malformed"),
    Scene(10, "JSON of another shape in mid-stream", Fault(garbage="shape", garbage_after_chunks=5), "malformed"),
    Scene(11, "an error event in mid-stream", Fault(error_event_after_chunks=5), "stream_error"),
)
EACH = pytest.mark.parametrize("scene", SCENES, ids=[f"{scene.number} {scene.name}" for scene in SCENES])


def always(fault: Fault) -> Scenario:
    return Scenario(rules=(FaultRule(fault),))


@STREAMED
@EACH
async def test_a_stream_that_breaks_ends_with_an_error_event_and_is_never_begun_anew(wall, scene, slack_s):
    """What came before it is right as far as it goes; neither the gateway nor the SDK asks again for what the client has half of."""
    wall.scene(scene.number, scene.name)
    await wall.open(deadlines=scene.deadlines)
    wall.one.play(always(scene.fault))
    seen = await wall.ask("pair", f"say {TEXT}", client=wall.client(max_retries=2))
    late = scene.cause.startswith("timeout:")
    assert (seen.status, seen.code) == (None, "upstream_timeout" if late else "upstream_failed")
    assert seen.text.split() == TEXT.split()[:4]
    assert seen.seconds < slack_s
    books = await wall.books(exact=False)
    assert books.attempts == [("one/m", scene.cause)]
    assert (books.call["outcome"], books.call["code"]) == ("cut", seen.code)
    assert (len(wall.one.requests), wall.two.requests) == (1, [])


@STREAMED
@EACH
async def test_a_stream_that_breaks_is_gone_on_with_by_a_target_that_can(wall, scene, slack_s):
    """The whole right text, each token once, one normal end: the client cannot tell."""
    wall.scene(scene.number, f"{scene.name}, gone on with")
    await wall.open(deadlines=scene.deadlines, extra=CONTINUE, target=CONTINUES)
    wall.one.play(always(scene.fault))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    assert seen.seconds < slack_s
    books = await wall.books(exact=False)
    assert books.attempts == [("one/m", scene.cause), ("two/m", "succeeded")]
    assert books.call["attempts"][1]["why"] == "continuation"
    assert books.call["outcome"] == "completed"
    half = wall.two.requests[0].body["messages"][-1]
    assert (half["role"], half["content"].split()) == ("assistant", TEXT.split()[:4])


@STREAMED
@EACH
async def test_a_stream_that_is_held_for_its_validators_falls_back_unseen_although_tokens_came(wall, scene, slack_s):
    """Nothing of it has reached the client, so nothing is lost but time."""
    wall.scene(scene.number, f"{scene.name}, held")
    await wall.open(deadlines=scene.deadlines, extra="[[route.validators]]\nnon_empty = true\n")
    wall.one.play(always(scene.fault))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    assert seen.seconds < slack_s
    assert (await wall.books(exact=False)).attempts == [("one/m", scene.cause), ("two/m", "succeeded")]


@STREAMED
async def test_a_stream_that_leaves_its_last_word_out_has_ended_where_it_said_so(wall):
    """Some servers send no `[DONE]`: with its reason to finish and a clean end nothing is missing."""
    wall.scene(8, "whole, but for `[DONE]`")
    await wall.open()
    wall.one.play(always(Fault(drop_done=True)))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    assert (await wall.books(exact=True)).attempts == [("one/m", "succeeded")]


@STREAMED
async def test_a_continuation_that_breaks_too_ends_with_an_error_event(wall, slack_s):
    wall.scene(8, "reset in mid-stream, and again in what goes on")
    await wall.open(extra=CONTINUE, target=CONTINUES)
    for each in (wall.one, wall.two):
        each.play(always(Fault(cut_after_chunks=5)))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.status, seen.code) == (None, "upstream_failed")
    assert TEXT.startswith(seen.text)
    assert len(seen.text.split()) >= 4
    assert seen.seconds < slack_s
    books = await wall.books(exact=False)
    assert (books.call["outcome"], books.attempts[0]) == ("cut", ("one/m", "reset"))


@STREAMED
async def test_what_breaks_inside_a_tool_call_is_not_gone_on_with(wall):
    """Half a tool call that another model ends is a call that nobody made."""
    wall.scene(8, "reset inside a tool call")
    await wall.open(extra=CONTINUE, target=CONTINUES)
    wall.one.play(always(Fault(cut_after_chunks=4)))
    seen = await wall.ask("pair", 'call lookup {"word": "a word that is cut into many pieces"}', tools=TOOLS)
    assert (seen.status, seen.code, seen.text) == (None, "upstream_failed", "")
    books = await wall.books(exact=False)
    assert (books.attempts, wall.two.requests) == ([("one/m", "reset")], [])


@STREAMED
async def test_a_stream_whose_length_ends_before_it_does_is_cut(wall):
    wall.scene(14, "a stream shorter than it is")
    await wall.open()
    wall.one.play(always(Fault(length_off=-10)))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.status, seen.code) == (None, "upstream_failed")
    assert TEXT.startswith(seen.text)
    books = await wall.books(exact=False)
    assert (books.attempts, books.call["outcome"]) == ([("one/m", "cut")], "cut")


async def test_a_slow_drip_below_the_idle_limit_ends_with_the_total(wall, stream, slack_s):
    """What came is the client's, of a stream; of a whole answer it gets the error alone."""
    wall.scene(17, "slow drip past `total`")
    await wall.open(deadlines={"total": "400ms"})
    wall.one.play(Scenario(pacing=Fault(delay_between_tokens_s=0.1)))
    seen = await wall.ask("pair", f"say {TEXT}", client=wall.client(max_retries=2))
    assert (seen.status, seen.code) == (None if stream else 504, "upstream_timeout")
    assert TEXT.startswith(seen.text)
    assert 0.4 <= seen.seconds < 0.4 + slack_s
    books = await wall.books(exact=False)
    assert books.attempts == [("one/m", "timeout:total")]
    assert (books.call["outcome"], wall.one.requests[0].end, wall.two.requests) == ("cut" if stream else "failed", "client_gone", [])


@STREAMED
async def test_the_client_that_blocks_gets_the_error_event_too(wall):
    wall.scene(8, "reset in mid-stream, seen by the sync client")
    await wall.open()
    wall.one.play(always(Fault(cut_after_chunks=5)))
    seen = await wall.ask_in_thread("pair", f"say {TEXT}")
    assert (seen.status, seen.code) == (None, "upstream_failed")
    assert seen.text.split() == TEXT.split()[:4]
    await wall.books(exact=False)
