"""Scenarios 1 to 14, as far as nothing has reached the client yet: it never learns of them, whatever the provider did."""

import contextlib
import socket
from dataclasses import dataclass, field, replace
from typing import Any

import openai
import pytest

from gateway.simulator import Fault, FaultRule, Scenario

TEXT = " ".join(f"word{n}" for n in range(30))
SOON = "300ms"  # a deadline that is to fire; the target that is well has as long to answer
SILENCE = {"first_token": SOON, "idle": SOON}


@dataclass(frozen=True)
class Scene:
    """A provider's fault and what the record calls it, `plain` and `streamed`; `told`: the providers said what they used."""

    number: int
    name: str
    plain: tuple[Fault, str] | None
    streamed: tuple[Fault, str] | None
    told: bool = False
    deadlines: dict[str, str] = field(default_factory=dict)

    def of(self, *, stream: bool) -> tuple[Fault, str] | None:
        """The fault as it is met, None where another row has it."""
        return self.streamed if stream else self.plain


def both(number: int, name: str, fault: Fault, cause: str, **more: Any) -> Scene:
    return Scene(number, name, (fault, cause), (fault, cause), **more)


SCENES = (
    both(1, "429 with Retry-After", Fault(status=429, retry_after_s=30), "status:429", told=True),
    both(2, "500", Fault(status=500), "status:500", told=True),
    both(3, "503", Fault(status=503), "status:503", told=True),
    both(3, "503 that asks for a long wait", Fault(status=503, retry_after_s=30), "status:503", told=True),
    both(5, "reset after the request was sent", Fault(reset=True), "reset"),
    both(6, "accepts and never answers", Fault(hang=True), "timeout:headers", deadlines={"headers": SOON}),
    Scene(7, "headers, then no first token", (Fault(delay_first_token_s=60), "timeout:idle"),
          (Fault(delay_first_token_s=60), "timeout:first_token"), deadlines=SILENCE),
    Scene(8, "cut in the middle", (Fault(cut_after_chunks=2), "cut"), None),
    Scene(8, "cut before the first token", None, (Fault(cut_after_chunks=0), "reset")),
    Scene(9, "stall in the middle", (Fault(stall_after_chunks=2), "timeout:idle"), None, deadlines=SILENCE),
    Scene(9, "stall before the first token", None, (Fault(stall_after_chunks=0), "timeout:first_token"), deadlines=SILENCE),
    both(10, "broken JSON", Fault(garbage="json"), "malformed"),
    both(10, "bytes that are no text", Fault(garbage="bytes"), "malformed"),
    both(10, "JSON of another shape", Fault(garbage="shape"), "malformed"),
    both(11, "an error inside a 200", Fault(error_event_after_chunks=0), "stream_error"),
    both(12, "an HTML page with a 200", Fault(garbage="html"), "malformed"),
    both(12, "an HTML page with a 502", Fault(status=502, garbage="html"), "status:502", told=True),
    Scene(13, "an empty body", (Fault(empty=True), "malformed"), (Fault(empty=True), "cut")),
    Scene(14, "half a document, its length right", (Fault(end_after_chunks=2), "malformed"), None),
    Scene(14, "an end before the first token", None, (Fault(end_after_chunks=0), "cut")),
    Scene(14, "shorter than its length", (Fault(length_off=10), "cut"), None),
    Scene(14, "longer than its length", (Fault(length_off=-10), "malformed"), None),
)


def met(*numbers: int) -> pytest.MarkDecorator:
    """Every scene, or those of these numbers, in the modes that it has: `stream`, `scene`, its `fault` and its `cause`."""
    cases = [pytest.param(stream, scene, *found, id=f"{scene.number} {scene.name}-{'stream' if stream else 'plain'}")
             for scene in SCENES if not numbers or scene.number in numbers
             for stream in (False, True) if (found := scene.of(stream=stream)) is not None]
    return pytest.mark.parametrize(("stream", "scene", "fault", "cause"), cases, indirect=["stream"])


def always(fault: Fault) -> Scenario:
    return Scenario(rules=(FaultRule(fault),))


@met()
async def test_what_fails_before_the_first_token_is_passed_over_unseen(wall, scene, fault, cause, slack_s):
    """The right answer, once, within the one deadline that was lost; each provider is asked once."""
    wall.scene(scene.number, scene.name)
    await wall.open(deadlines=scene.deadlines)
    wall.one.play(always(fault))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    assert seen.seconds < slack_s + 0.3 * bool(scene.deadlines)
    books = await wall.books(exact=scene.told)
    assert books.attempts == [("one/m", cause), ("two/m", "succeeded")]
    assert (books.call["outcome"], len(wall.one.requests), len(wall.two.requests)) == ("completed", 1, 1)


@met()
async def test_where_there_is_no_other_target_one_clear_error_says_what_happened(wall, scene, fault, cause, slack_s):
    """With the retries of the SDK left on: it is told that the gateway has tried, so it asks once."""
    wall.scene(scene.number, f"{scene.name}, no other target")
    await wall.open(deadlines=scene.deadlines)
    wall.one.play(always(fault))
    seen = await wall.ask("lone", f"say {TEXT}", client=wall.client(max_retries=0 if cause == "status:429" else 2))
    late = cause.startswith("timeout:")
    expected = {"status:429": (429, "upstream_busy")}.get(cause, (504, "upstream_timeout") if late else (502, "upstream_failed"))
    assert ((seen.status, seen.code), seen.text) == (expected, "")
    assert seen.seconds < slack_s
    books = await wall.books(exact=scene.told)
    assert books.attempts == [("one/m", cause)]
    assert (books.call["outcome"], len(wall.one.requests)) == ("failed", 1)


@met(1, 5, 8, 13)
async def test_the_client_that_blocks_sees_the_same(wall, scene, fault, cause):
    wall.scene(scene.number, f"{scene.name}, seen by the sync client")
    await wall.open(deadlines=scene.deadlines)
    wall.one.play(always(fault))
    seen = await wall.ask_in_thread("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    books = await wall.books(exact=scene.told)
    assert books.attempts == [("one/m", cause), ("two/m", "succeeded")]


async def test_a_refused_connection_is_passed_over_and_costs_nothing(wall, slack_s):
    wall.scene(4, "refused connection")
    await wall.open()
    await wall.one.refuse()
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    assert seen.seconds < slack_s
    books = await wall.books(exact=True)
    assert books.attempts == [("one/m", "connect"), ("two/m", "succeeded")]
    assert wall.one.requests == []


async def test_a_refused_connection_with_no_other_target_is_one_clear_error(wall, slack_s):
    wall.scene(4, "refused connection, no other target")
    await wall.open()
    await wall.one.refuse()
    seen = await wall.ask("lone", f"say {TEXT}", client=wall.client(max_retries=2))
    assert (seen.status, seen.code) == (502, "upstream_failed")
    assert seen.seconds < slack_s
    books = await wall.books(exact=True)
    assert (books.attempts, books.booked_nusd) == ([("one/m", "connect")], 0)


async def test_a_connection_that_never_comes_about_is_passed_over_and_costs_nothing(wall, slack_s):
    wall.scene(4, "a connection that is never accepted")
    with contextlib.ExitStack() as stack, socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # who waits here fills its queue, and the next one hears nothing
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        await wall.open(deadlines={"connect": SOON}, one=f"http://127.0.0.1:{full.getsockname()[1]}/v1")
        seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    assert 0.3 <= seen.seconds < slack_s
    assert (await wall.books(exact=True)).attempts == [("one/m", "timeout:connect"), ("two/m", "succeeded")]


async def test_a_provider_that_was_started_anew_is_asked_over_a_new_connection(wall):
    """A connection that died while it was idle costs no attempt."""
    wall.scene(4, "started anew between two calls")
    await wall.open()
    for _ in range(2):
        seen = await wall.ask("lone", f"say {TEXT}")
        assert (seen.text, seen.error) == (TEXT, None)
        await wall.one.refuse()
        await wall.one.accept()
    books = await wall.books(exact=True)
    assert [[each["end"] for each in call["attempts"]] for call in books.calls] == [["succeeded"]] * 2


async def test_a_429_that_asks_for_a_short_wait_is_waited_for_where_nobody_else_can_answer(wall):
    wall.scene(1, "429 with a short Retry-After, no other target")
    await wall.open(attempts=2)
    wall.one.play(always(Fault(status=429, retry_after_s=0.1, times=1)))
    seen = await wall.ask("lone", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    assert seen.seconds >= 0.1
    books = await wall.books(exact=True)
    assert books.attempts == [("one/m", "status:429"), ("one/m", "succeeded")]
    assert books.call["attempts"][1]["waited_s"] > 0.09  # from when the answer came: some of it had passed


async def test_a_client_whose_every_target_is_busy_is_told_when_to_come_back_and_its_sdk_does(wall):
    """Nothing of the gateway's own stands in the way: the SDK waits for as long as it was told, and is answered."""
    wall.scene(1, "429 everywhere, then well: the SDK comes back")
    await wall.open(config='[breaker]\ncool_cap = "500ms"\n')
    busy = Fault(status=429, retry_after_s=1, times=1)
    wall.one.play(always(busy))
    wall.two.play(always(replace(busy, times=1)))
    with pytest.raises(openai.RateLimitError) as caught:
        await wall.client(max_retries=0).chat.completions.create(
            model="pair", messages=[{"role": "user", "content": f"say {TEXT}"}], stream=wall.stream)
    assert caught.value.code == "upstream_busy"
    assert caught.value.response.headers["x-should-retry"] == "true"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 3  # a second or two more, by chance
    seen = await wall.ask("pair", f"say {TEXT}", client=wall.client(max_retries=2))
    assert (seen.text, seen.error) == (TEXT, None)
    await wall.books(exact=True)


async def test_a_burst_of_500s_ends_in_the_right_answer_from_the_same_target(wall):
    """A retry after a short wait, where there is nobody else to ask."""
    wall.scene(2, "a burst of two 500s, three tries")
    await wall.open(attempts=3)
    wall.one.play(always(Fault(status=500, times=2)))
    seen = await wall.ask("lone", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    books = await wall.books(exact=True)
    assert books.attempts == [("one/m", "status:500"), ("one/m", "status:500"), ("one/m", "succeeded")]
    ids = [entry.client_request_id for entry in wall.one.requests]
    assert ids == [f"{books.call['id']}.{n}" for n in (1, 2, 3)]


async def test_an_honest_answer_under_a_wrong_content_type_is_read_for_what_it_is_or_asked_for_elsewhere(wall):
    """What counts is that the client gets the right answer, once, in its own format."""
    wall.scene(12, "a wrong content type")
    await wall.open()
    wall.one.play(always(Fault(content_type="text/html")))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    await wall.books(exact=False)


async def test_an_answer_that_says_nothing_is_an_answer_unless_the_route_says_otherwise(wall):
    wall.scene(13, "an answer without words")
    await wall.open()
    wall.one.play(always(Fault(content="")))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == ("", None)
    assert (await wall.books(exact=True)).attempts == [("one/m", "succeeded")]


async def test_a_route_that_wants_words_asks_the_next_target_for_them(wall):
    wall.scene(13, "an answer without words, non_empty")
    await wall.open(extra="[[route.validators]]\nnon_empty = true\n")
    wall.one.play(always(Fault(content="")))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    assert (await wall.books(exact=True)).attempts == [("one/m", "check:non_empty"), ("two/m", "succeeded")]


async def test_a_length_that_promises_more_than_the_whole_answer_takes_nothing_from_it(wall):
    """A stream says itself when it ends; of a plain answer nobody knows what is missing."""
    wall.scene(14, "whole, its length too long")
    await wall.open()
    wall.one.play(always(Fault(length_off=10)))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    books = await wall.books(exact=wall.stream)
    assert len(books.attempts) == 1 if wall.stream else 2


async def test_an_answer_in_tiny_pieces_is_put_together(wall):
    wall.scene(10, "well, in pieces of 3 bytes")
    await wall.open()
    wall.one.play(always(Fault(chunk_bytes=3)))
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error) == (TEXT, None)
    assert (await wall.books(exact=True)).attempts == [("one/m", "succeeded")]
