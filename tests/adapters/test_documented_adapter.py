"""The example in docs/adapters.md is a whole adapter: it is loaded from the page and run."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import (
    Adapter,
    AttemptFailed,
    Event,
    InvalidRequest,
    Secret,
    StreamDecoder,
    Target,
    UpstreamRejected,
    Usage,
    dumps,
    loads,
)

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
TARGET = Target("aviary", "polly")
STREAM = b'{"word": "hel"}\n{"word": "lo \xc3\xa4"}\n{"end": "out_of_breath", "heard": 5, "said": 7}\n'
WORDS = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


@pytest.fixture(scope="module")
def parrot(tmp_path_factory, load) -> Adapter:
    folder = tmp_path_factory.mktemp("adapters")
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (folder / "parrot.py").write_text(source, "utf-8")
    adapter: Adapter = load("parrot", folder)
    return adapter


def decode(decoder: StreamDecoder, *chunks: bytes) -> list[Event]:
    events = []
    for data in (*chunks, b""):
        decoder.feed(data)
        while (event := decoder.next_event()) is not None:
            events.append(event)
            if event.done:
                return events
    return events


def test_it_writes_the_request_in_its_upstreams_format(parrot, make_call):
    call = make_call(stream=True)
    request = parrot.encode(call, TARGET, Secret("seed"))
    assert (request.method, request.path, request.headers["x-perch"]) == ("POST", "/talk", "seed")
    assert loads(request.body) == {"bird": "polly", "say": "hi", "lines": True}
    assert "x-perch" not in parrot.encode(call, TARGET, None).headers


def test_it_asks_whether_its_upstream_is_well_with_the_same_key(parrot):
    request = parrot.health("/alive", Secret("seed"))
    assert (request.method, request.path, request.headers, request.body) == ("GET", "/alive", {"x-perch": "seed"}, b"")
    assert parrot.health("/alive", None).headers == {}


@pytest.mark.parametrize(("body", "pointer"), [
    ({"tools": []}, "/tools"),
    ({"messages": [{"role": "user", "content": "a"}] * 2}, "/messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "/messages"),
])
def test_what_its_upstream_cannot_do_is_refused_by_name(parrot, make_call, body, pointer):
    with pytest.raises(InvalidRequest) as refused:
        parrot.encode(make_call(**body), TARGET, None)
    assert refused.value.pointer == pointer


def test_it_reads_a_whole_answer_into_the_canonical_form(parrot, make_call, dialect):
    reply = parrot.decode(make_call(), b'{"text": "hello", "end": "full_stop", "heard": 5, "said": 7}')
    assert reply.usage == Usage(input_tokens=5, output_tokens=7)
    assert reply.finish_reasons == ("stop",)
    answer = loads(dialect.answer(make_call(), reply))
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "hello"}
    assert answer["usage"] == WORDS
    assert parrot.decode(make_call(), b'{"text": "hello", "heard": -1, "said": 7}').usage is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"text": 1}'])
def test_what_is_not_an_answer_is_malformed(parrot, make_call, body):
    with pytest.raises(AttemptFailed) as failed:
        parrot.decode(make_call(), body)
    assert failed.value.cause == "malformed"


def test_it_sorts_errors_by_whose_they_are(parrot):
    body = b'{"squawk": "too long"}'
    rejected = parrot.decode_error(422, {}, body)
    assert isinstance(rejected, UpstreamRejected)
    assert (rejected.message, rejected.status) == ("too long", 422)
    assert [parrot.decode_error(status, {}, body).retryable for status in (401, 429, 503)] == [False, True, True]
    assert "without a reason" in parrot.decode_error(500, {}, b"<html>").message


def test_it_reads_a_stream_however_its_bytes_are_cut(parrot, make_call):
    events = decode(parrot.decoder(make_call()), STREAM)
    assert [event.body and event.body["choices"][0]["delta"]["content"] for event in events[:2]] == ["hel", "lo ä"]
    assert events[2].finish_reason == "length"
    assert events[3].usage == Usage(input_tokens=5, output_tokens=7)
    assert events[3].body is not None
    assert events[3].body["usage"] == WORDS
    assert events[4:] == [Event(done=True)]
    assert decode(parrot.decoder(make_call()), *(bytes([byte]) for byte in STREAM)) == events
    for at in range(1, len(STREAM)):
        assert decode(parrot.decoder(make_call()), STREAM[:at], STREAM[at:]) == events


def test_a_cut_at_any_byte_is_a_cut(parrot, make_call):
    for at in range(len(STREAM)):
        with pytest.raises(AttemptFailed) as failed:
            decode(parrot.decoder(make_call()), *filter(None, [STREAM[:at]]))
        assert failed.value.cause == "cut"


@pytest.mark.parametrize(("stream", "cause"), [
    (b'{"squawk": "cat!"}\n', "stream_error"), (b"garbage\n", "malformed"), (b"{}\n", "malformed"),
    (b"x" * 2_000_000, "malformed"),
])
def test_a_stream_that_breaks_says_how(parrot, make_call, stream, cause):
    with pytest.raises(AttemptFailed) as failed:
        decode(parrot.decoder(make_call()), stream)
    assert failed.value.cause == cause


def test_nothing_comes_after_the_end(parrot, make_call):
    decoder = parrot.decoder(make_call())
    assert len(decode(decoder, STREAM + b"garbage\n")) == 5
    assert decoder.next_event() is None


def test_an_end_without_counts_has_no_usage(parrot, make_call):
    assert [event.usage for event in decode(parrot.decoder(make_call()), b'{"end": {}}\n')] == [None, None]


FIELDS = st.sampled_from(["word", "end", "heard", "said", "squawk"])
LINES = st.dictionaries(FIELDS, st.none() | st.integers(-9, 9) | st.text() | st.lists(st.booleans()))
PIECES = st.binary(max_size=9) | st.sampled_from([STREAM, b"\n"]) | LINES.map(lambda line: dumps(line) + b"\n")


@given(st.lists(PIECES, max_size=5))
def test_whatever_its_upstream_sends_is_an_event_or_a_failed_attempt(parrot, make_call, pieces):
    try:
        events = decode(parrot.decoder(make_call()), *filter(None, pieces))
    except AttemptFailed:
        return
    assert events[-1].done
