"""Streamed answers: chunks from the provider in, chunks for the client out, and an end that is always told truly."""

from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamFailed
from gateway.wire import AttemptFailed, Event, StreamDecoder, Usage, dumps, loads


def chunk(content: str = "", *, index: int = 0, finish: str | None = None, **fields: object) -> dict[str, object]:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **fields}


def sse(*bodies: object) -> bytes:
    return b"".join(b"data: " + (body if isinstance(body, bytes) else dumps(body)) + b"\n\n" for body in bodies)


def decode(decoder: StreamDecoder, *chunks: bytes, close: bool = True) -> list[Event]:
    """Every event until the end, as the relay takes them; the last `feed` says that the upstream closed."""
    events = []
    for data in (*chunks, *([b""] if close else [])):
        decoder.feed(data)
        while (event := decoder.next_event()) is not None:
            events.append(event)
            if event.done:
                return events
    return events


def cause_of(decoder: StreamDecoder, *chunks: bytes) -> str:
    with pytest.raises(AttemptFailed) as failed:
        decode(decoder, *chunks)
    assert failed.value.retryable
    return failed.value.cause


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
WHOLE: list[dict[str, Any]] = [chunk("ä"), chunk("€😀", usage=None), chunk(finish="stop"), {"id": "c", "choices": [], "usage": USAGE}]
DONE = Event(done=True)


def test_a_stream_becomes_its_chunks_its_reason_its_usage_and_its_end(adapter, make_call):
    assert decode(adapter.decoder(make_call(stream=True)), sse(*WHOLE, b"[DONE]")) == [
        Event(WHOLE[0]),
        Event(WHOLE[1]),
        Event(WHOLE[2], finish_reason="stop"),
        Event(WHOLE[3], usage=Usage(input_tokens=3, output_tokens=2)),
        DONE,
    ]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_where_the_bytes_were_split_changes_nothing(adapter, make_call, newline):
    stream = (b": hello\n\n" + sse(*WHOLE, b"[DONE]")).replace(b"\n", newline)
    expected = decode(adapter.decoder(make_call()), stream)
    assert decode(adapter.decoder(make_call()), *(bytes([byte]) for byte in stream)) == expected
    for at in range(1, len(stream)):
        assert decode(adapter.decoder(make_call()), stream[:at], stream[at:]) == expected


def test_a_stream_cut_at_any_byte_is_never_reported_as_complete(adapter, make_call):
    """Before the last byte of the answer itself; after that only `[DONE]` or the usage is missing."""
    stream = sse(*WHOLE, b"[DONE]")
    complete = [len(sse(*WHOLE[:3])), len(sse(*WHOLE)), len(stream) - 2, len(stream) - 1]
    for at in range(len(stream)):
        decoder = adapter.decoder(make_call())
        if at in complete:
            assert decode(decoder, *filter(None, [stream[:at]]))[-1] == DONE
        else:
            assert cause_of(decoder, *filter(None, [stream[:at]])) == "cut", at


def test_comments_make_no_event(adapter, make_call):
    """The first event is what commits the answer to the client; a keep-alive must not."""
    decoder = adapter.decoder(make_call())
    assert decode(decoder, b": PROCESSING\n\n", b"event: ping\n\n", b"data:\n\n", b"data: \n\n", close=False) == []


@pytest.mark.parametrize("nothing", [b"null", b""])
def test_an_event_of_nothing_changes_nothing(adapter, make_call, nothing):
    """llama.cpp sends `null` at the start of a stream of several prompts."""
    plain = decode(adapter.decoder(make_call()), sse(*WHOLE, b"[DONE]"))
    assert decode(adapter.decoder(make_call()), sse(nothing, WHOLE[0], nothing, *WHOLE[1:], nothing, b"[DONE]")) == plain


def usages(*totals: int) -> list[dict[str, Any]]:
    return [{"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": total}} for total in totals]


@pytest.mark.parametrize(("body", "reports", "expected"), [
    ({"n": 2}, (), None),
    ({"n": 2}, (9,), 9),
    ({"n": 2}, (5, 5), None),
    ({"n": 2}, (4, 5), None),
    ({"n": 3}, (4, 5, 3, 6), None),
    ({"prompt": ["a", "b"]}, (7,), 7),
    ({"prompt": ["a", "b"]}, (7, 2), None),
    ({"prompt": ["a"]}, (1, 2), 2),
    ({}, (1, 2, 3), 3),
])
def test_usage_of_several_choices_is_believed_only_if_it_is_reported_once(adapter, make_call, body, reports, expected):
    """A server that reports each choice for itself would otherwise have the last one billed for all."""
    events = decode(adapter.decoder(make_call(**body)), sse(chunk("a"), *usages(*reports), b"[DONE]"))
    last = next((event.usage for event in reversed(events) if event.usage), None)
    assert last == (None if expected is None else Usage(input_tokens=1, output_tokens=expected))


def test_what_follows_the_end_is_ignored(adapter, make_call):
    decoder = adapter.decoder(make_call())
    assert decode(decoder, sse(chunk("a"), b"[DONE]", b"garbage", chunk("b")))[-1] == DONE
    decoder.feed(b"")
    assert decoder.next_event() is None


def test_a_server_that_says_done_without_a_reason_is_believed(adapter, make_call):
    assert decode(adapter.decoder(make_call()), sse(chunk("a"), b"[DONE]"))[-1] == DONE


@pytest.mark.parametrize(("body", "chunks", "ends"), [
    ({}, [chunk("a"), chunk(finish="stop")], True),
    ({}, [chunk("a"), chunk(finish="stop"), chunk("b", index=1)], False),
    ({}, [chunk("a"), chunk(finish="")], False),
    ({"n": 2}, [chunk(finish="stop")], False),
    ({"n": 2}, [chunk(finish="stop"), chunk(finish="stop", index=1)], True),
    ({"n": "2"}, [chunk(finish="stop")], True),
    ({"n": -2}, [chunk(finish="stop")], True),
    ({"n": 10**30}, [chunk(finish="stop")], False),
    ({"prompt": ["a", "b"]}, [chunk(finish="stop")], False),
    ({"prompt": ["a", "b"]}, [chunk(finish="stop"), chunk(finish="stop", index=1)], True),
    ({"prompt": ["a", "b"], "n": 2}, [chunk(finish="stop"), chunk(finish="stop", index=1)], False),
    ({"prompt": [1, 2]}, [chunk(finish="stop")], True),
    ({}, [{"choices": [{"index": [], "finish_reason": "stop"}]}], True),
    ({}, [{"choices": [{"index": 10**18, "finish_reason": "stop"}]}], True),
    ({}, [{"choices": [{"finish_reason": {"a": 1}}]}], False),
])
def test_without_done_a_stream_ends_only_when_every_choice_asked_for_has(adapter, make_call, body, chunks, ends):
    decoder = adapter.decoder(make_call(**body))
    if ends:
        assert decode(decoder, sse(*chunks))[-1] == DONE
    else:
        assert cause_of(decoder, sse(*chunks)) == "cut"


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data:[DONE]\n", b"data: [DONE]\r", b": bye\n\ndata: [DONE]\n"])
def test_a_done_whose_blank_line_is_missing_is_an_end(adapter, make_call, tail):
    assert decode(adapter.decoder(make_call()), sse(chunk("a")) + tail)[-1] == DONE


def test_a_cut_stays_a_cut(adapter, make_call):
    decoder = adapter.decoder(make_call())
    assert cause_of(decoder, sse(chunk("a"))) == "cut"
    with pytest.raises(AttemptFailed):
        decoder.next_event()


@pytest.mark.parametrize(("stream", "cause"), [
    (b"", "cut"),
    (b": only a comment\n\n", "cut"),
    (b'data: {"choices"', "cut"),
    (b"<html>\n\n<body>502</body></html>", "malformed"),
    (b'{"id": "c", "choices": []}', "malformed"),
    (sse(b"[DONE]"), "malformed"),
    (sse(b"{"), "malformed"),
    (sse(b"garbage"), "malformed"),
    (sse(b"\xff"), "malformed"),
    (sse(b"[1]"), "malformed"),
    (sse(b"null"), "cut"),
    (sse(b"null", b"[DONE]"), "malformed"),
    (b"event: error\n" + sse(b"null"), "stream_error"),
    (b"event: error\ndata:\n\n", "malformed"),
    (sse(b"{}"), "malformed"),
    (sse(b'{"choices": {}}'), "malformed"),
    (sse(b'{"choices": null}'), "malformed"),
    (sse(b'{"choices": "x", "usage": {}}'), "malformed"),
    (sse(b'{"choices": [null]}'), "malformed"),
    (sse(b'{"choices": [{}, 1]}'), "malformed"),
    (sse(b'{"choices": [], "created": 18446744073709551616}'), "malformed"),
    (sse(b'{"choices": [], "x": NaN}'), "malformed"),
    (b"data: " + b"x" * 9_000_000, "malformed"),
    (sse({"error": {"message": "overloaded"}}), "stream_error"),
    (sse({"error": "overloaded"}), "stream_error"),
    (sse({"object": "error", "message": "overloaded"}), "stream_error"),
    (sse(chunk("a"), {**chunk("b"), "error": {"message": "x"}}), "stream_error"),
    (b"event: error\n" + sse({"message": "overloaded"}), "stream_error"),
    (b"event: error\n" + sse(chunk("a")), "stream_error"),
])
def test_a_stream_that_breaks_says_how(adapter, make_call, stream, cause):
    assert cause_of(adapter.decoder(make_call()), *filter(None, [stream])) == cause


def test_an_error_in_the_stream_keeps_the_providers_words_whole(adapter, make_call):
    decoder = adapter.decoder(make_call())
    decoder.feed(sse({"error": {"message": "quota " * 1000}}))
    with pytest.raises(AttemptFailed, match="An error in the stream: quota") as failed:
        decoder.next_event()
    assert len(failed.value.message) > 6000


def test_events_before_the_broken_one_come_out_first(adapter, make_call):
    decoder = adapter.decoder(make_call())
    decoder.feed(sse(chunk("a"), b"garbage"))
    assert decoder.next_event() == Event(chunk("a"))
    with pytest.raises(AttemptFailed):
        decoder.next_event()


@pytest.mark.parametrize("usage", [None, {}, [], 0, "x", {"prompt_tokens": -1, "completion_tokens": 2}])
def test_usage_that_cannot_be_trusted_is_left_out_of_the_event(adapter, make_call, usage):
    events = decode(adapter.decoder(make_call()), sse(chunk("a", usage=usage)), close=False)
    assert events == [Event(chunk("a", usage=usage))]


def test_a_usage_chunk_may_leave_the_choices_out(adapter, make_call):
    events = decode(adapter.decoder(make_call()), sse({"usage": USAGE}), close=False)
    assert events == [Event({"usage": USAGE}, usage=Usage(input_tokens=3, output_tokens=2))]


def test_its_repr_tells_its_state(adapter, make_call):
    decoder = adapter.decoder(make_call())
    decode(decoder, sse(chunk(finish="stop")))
    assert repr(decoder) == "OpenAIStreamDecoder(finished=1/1, closed=True, done=True)"


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "usage", "error", "object", "index", "delta", "finish_reason", "prompt_tokens", "message"]), inner
    ),
    max_leaves=8,
)
PIECES = (
    st.binary(max_size=20)
    | st.sampled_from([b"data: ", b"data", b"event: error\n", b"\n\n", b"\r\r", b"[DONE]", sse(*WHOLE), sse(b"[DONE]")])
    | st.dictionaries(st.sampled_from(["choices", "usage", "error", "object"]), HOSTILE).map(sse)
    | st.fixed_dictionaries({"choices": st.lists(HOSTILE, max_size=3)}).map(sse)
)


@given(st.lists(PIECES, max_size=8))
def test_whatever_a_provider_sends_is_an_event_or_a_failed_attempt(adapter, make_call, pieces):
    try:
        events = decode(adapter.decoder(make_call()), *filter(None, pieces))
    except AttemptFailed:
        return
    assert events[-1] == DONE


CHOICES = st.lists(st.dictionaries(st.text(max_size=3), HOSTILE, max_size=3), max_size=2)


@given(st.fixed_dictionaries({"choices": CHOICES}, optional={"usage": HOSTILE, "x_own": HOSTILE}))
def test_a_chunk_that_is_taken_reaches_the_client_as_it_came(adapter, dialect, make_call, body):
    data = sse(body)
    (event,) = decode(adapter.decoder(make_call()), data, close=False)
    encoder = dialect.encoder(make_call(stream_options={"include_usage": True}))
    assert loads(encoder.event(event)[6:-2]) == loads(data[6:-2])


def test_a_client_that_did_not_ask_for_usage_sees_none(dialect, make_call):
    encoder = dialect.encoder(make_call(stream=True))
    assert encoder.event(Event(chunk("a"))) == sse(chunk("a"))
    assert encoder.event(Event(chunk("a", usage=None))) == sse(chunk("a"))
    assert encoder.event(Event(chunk("a", usage=USAGE))) == sse(chunk("a"))
    assert encoder.event(Event(WHOLE[3])) == b""
    assert encoder.event(Event({"usage": USAGE})) == b""
    assert encoder.event(Event({"choices": [], "filter": []})) == sse({"choices": [], "filter": []})
    assert encoder.event(Event({"choices": [], "usage": None, "x": 1})) == sse({"choices": [], "x": 1})


@pytest.mark.parametrize("options", [None, {}, [], {"include_usage": False}, {"include_usage": None}])
def test_only_a_clear_yes_asks_for_usage(dialect, make_call, options):
    assert dialect.encoder(make_call(stream=True, stream_options=options)).event(Event(WHOLE[3])) == b""


def test_a_client_that_asked_for_usage_gets_every_chunk_as_it_came(dialect, make_call):
    encoder = dialect.encoder(make_call(stream=True, stream_options={"include_usage": True}))
    for body in WHOLE:
        assert encoder.event(Event(body)) == sse(body)


def test_the_chunk_itself_is_not_changed_for_the_client(dialect, make_call):
    """The journal keeps what the provider said."""
    body = chunk("a", usage=USAGE)
    dialect.encoder(make_call(stream=True)).event(Event(body))
    assert body["usage"] == USAGE


def test_an_event_without_a_chunk_has_no_bytes(dialect, make_call):
    assert dialect.encoder(make_call()).event(Event(usage=Usage())) == b""


@pytest.mark.parametrize(("text", "written"), [
    ("cost 0.1", b": cost 0.1\n\n"),
    ("a\r\ndata: evil\n\nb\rc", b": a data: evil  b c\n\n"),
    ("\u2028\x85x\udcff", b":   x?\n\n"),
    ("", b": \n\n"),
])
def test_a_comment_is_one_line_that_clients_skip(dialect, make_call, text, written):
    assert dialect.encoder(make_call()).comment(text) == written


ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


@pytest.fixture
def relayed(adapter, dialect, make_call):
    """What a client without `include_usage` is sent for the provider's stream."""
    encoder = dialect.encoder(make_call(stream=True))
    events = decode(adapter.decoder(make_call(stream=True)), sse(*WHOLE, b"[DONE]"))
    return [encoder.event(event) for event in events]


def test_the_official_client_reads_the_stream_to_its_end(dialect, make_call, relayed, official):
    encoder = dialect.encoder(make_call(stream=True))
    pieces = [encoder.comment("held"), *relayed, encoder.comment("cost=0.1"), encoder.end()]
    chunks = list(official(200, "text/event-stream", *pieces).chat.completions.create(**ASK))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "ä€😀"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_the_official_client_raises_on_a_stream_that_broke(dialect, make_call, relayed, official):
    encoder = dialect.encoder(make_call(stream=True))
    pieces = [relayed[0], encoder.error(UpstreamFailed("The provider closed the stream."), "call_9")]
    stream = official(200, "text/event-stream", *pieces).chat.completions.create(**ASK)
    assert next(stream).choices[0].delta.content == "ä"
    with pytest.raises(openai.APIError, match="closed the stream") as raised:
        next(stream)
    assert (raised.value.code, raised.value.type) == ("upstream_failed", "server_error")
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["call_id"] == "call_9"
