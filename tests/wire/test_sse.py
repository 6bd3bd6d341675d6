"""The framing of server-sent events: as the specification says, wherever the bytes were split."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder as OfficialDecoder

from gateway.wire import AttemptFailed, ServerSentEvent, SseDecoder


def read(*chunks: bytes, max_event: int = 1000) -> tuple[list[ServerSentEvent], bytes]:
    decoder = SseDecoder(max_event=max_event)
    events = []
    for chunk in chunks:
        decoder.feed(chunk)
        while (event := decoder.next_event()) is not None:
            events.append(event)
    return events, decoder.rest()


def data_of(*chunks: bytes) -> list[bytes]:
    return [event.data for event in read(*chunks)[0]]


@pytest.mark.parametrize(("stream", "expected"), [
    (b"data: a\n\n", [b"a"]),
    (b"data:a\n\n", [b"a"]),
    (b"data:  a\n\n", [b" a"]),
    (b"data: a\ndata: b\n\n", [b"a\nb"]),
    (b"data\n\n", [b""]),
    (b"data\ndata\n\n", [b"\n"]),
    (b"data:\n\n", [b""]),
    (b"data: a: b\n\n", [b"a: b"]),
    (b"\n\n\ndata: a\n\n\n\ndata: b\n\n\n", [b"a", b"b"]),
    (b": keep-alive\n\ndata: a\n\n", [b"a"]),
    (b": keep-alive\ndata: a\n: more\n\n", [b"a"]),
    (b"event: ping\n\n", []),
    (b"unknown: x\nDATA: y\n data: z\n\n", []),
    (b"data: a\n", []),
    (b"data: a", []),
    (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    (b"\xef\xbb\xbf\n\ndata: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    (b"data: a\r\rdata: b\r\n\r\ndata: c\n\n", [b"a", b"b", b"c"]),
    (b"data: a\r\n\rdata: b\n\r\n", [b"a", b"b"]),
    (b"data: a\rdata: b\n\r", [b"a\nb"]),
    ("data: ä€😀\n\n".encode(), ["ä€😀".encode()]),
    (b"data: \xff\n\n", [b"\xff"]),
])
def test_data_is_what_the_specification_says_at_every_split_point(stream, expected):
    assert data_of(stream) == expected
    assert data_of(*(bytes([byte]) for byte in stream)) == expected
    for at in range(len(stream) + 1):
        assert data_of(stream[:at], stream[at:]) == expected


def test_an_event_has_its_name_its_id_and_its_retry():
    stream = b"id: 7\nevent: add\nretry: 1500\ndata: x\n\ndata: y\n\nid\ndata: z\n\n"
    assert read(stream)[0] == [
        ServerSentEvent(b"x", "add", "7", 1500),
        ServerSentEvent(b"y", "message", "7", None),
        ServerSentEvent(b"z", "message", "", None),
    ]


def test_fields_that_the_specification_ignores_are_ignored():
    """An id with a NUL, a retry that is not of ASCII digits; and a retry too long to be a number of milliseconds."""
    stream = b"id: a\0b\nretry: 1e3\ndata: x\n\nretry: " + b"9" * 500 + b"\ndata: y\n\nretry: -1\nevent:\ndata: z\n\n"
    assert read(stream)[0] == [ServerSentEvent(b"x"), ServerSentEvent(b"y"), ServerSentEvent(b"z")]


def test_bad_utf8_in_a_name_is_replaced_and_in_data_left_to_the_reader():
    assert read(b"event: \xff\nid: \xfe\ndata: \xfd\n\n")[0] == [ServerSentEvent(b"\xfd", "\ufffd", "\ufffd")]


def test_an_event_is_out_as_soon_as_its_blank_line_has_ended():
    """Waiting for an LF after a CR would hold every token back until the next one."""
    assert data_of(b"data: a\r\n\r") == [b"a"]
    assert data_of(b"data: a\r\n\r", b"\n", b"data: b\r", b"\r", b"", b"\n") == [b"a", b"b"]


@pytest.mark.parametrize(("stream", "rest"), [
    (b"", b""),
    (b"data: a\n\n", b""),
    (b"data: a\r\n\r\n", b""),
    (b"data: a\n\n\n", b""),
    (b"data: a\n\n: bye\n", b""),
    (b"data: a\n\n: by", b""),
    (b"data: a\n\nd", b"d"),
    (b"data: a\n\ndata: b\n", b"data: b"),
    (b"data: a\n\ndata: b\nda", b"data: b\nda"),
    (b"\xef\xbb\xbf", b""),
    (b"\xef\xbb\xbfdata: b", b"data: b"),
])
def test_it_knows_what_is_left_of_an_event_that_was_cut(stream, rest):
    assert read(stream)[1] == rest


@pytest.mark.parametrize("ending", [b"", b"\n", b"\n\n"])
def test_an_event_longer_than_the_limit_is_refused_and_stays_refused(ending):
    decoder = SseDecoder(max_event=100)
    decoder.feed(b"data: short\n\n")
    decoder.feed(b"data: " + b"x" * 95 + ending)
    event = decoder.next_event()
    assert event is not None
    assert event.data == b"short"
    for _ in range(2):
        with pytest.raises(AttemptFailed) as failed:
            decoder.next_event()
        assert failed.value.cause == "malformed"


def test_the_limit_is_for_one_event_and_not_for_the_bytes_that_came_at_once():
    assert len(data_of(*[b"data: x\n\n" * 100] * 3)) == 300
    assert len(read(b"data: x\n\n" * 100, max_event=10)[0]) == 100


def test_a_long_event_in_small_pieces_is_searched_once():
    """A decoder that starts over with every chunk needs minutes for this."""
    decoder = SseDecoder()
    for _ in range(100_000):
        decoder.feed(b"data: 0123456789012345678901234567890123456789\n")
        assert decoder.next_event() is None
    decoder.feed(b"\n")
    event = decoder.next_event()
    assert event is not None
    assert len(event.data) == 100_000 * 41 - 1


def test_its_repr_tells_its_state():
    decoder = SseDecoder()
    decoder.feed(b"id: 4\ndata: x\n\ndata")
    decoder.next_event()
    assert repr(decoder) == "SseDecoder(buffered=4, id='4')"


PIECES = st.sampled_from([
    b"data: {}", b"data:x", b"data", b"event: e", b"id: 1", b"id", b": c", b"retry: 5", b"junk", "ä€".encode(), b" ",
    b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n",
])


@given(st.lists(PIECES, max_size=30).map(b"".join), st.lists(st.integers(0, 100), max_size=5))
def test_it_agrees_with_the_official_client_wherever_the_bytes_are_split(stream, cuts):
    """The official decoder also emits blocks without data; the specification does not, and nobody reads them."""
    at = [0, *sorted(cuts), len(stream)]
    chunks = [stream[start:end] for start, end in pairwise(at)]
    events = read(*chunks)[0]
    official = list(OfficialDecoder().iter_bytes(iter([stream])))
    spoken = [(event.data.encode(), event.event or "message", event.id or "", event.retry) for event in official]
    assert [event for event in events if event.data] == [event for event in spoken if event[0]]
    assert read(stream) == read(*chunks)


@given(st.binary() | st.text("data:even i\r\n\0", max_size=60).map(str.encode), st.integers(0, 60))
def test_any_bytes_give_the_same_events_however_they_are_split(stream, at):
    assert read(stream) == read(stream[:at], stream[at:]) == read(*(bytes([byte]) for byte in stream))
