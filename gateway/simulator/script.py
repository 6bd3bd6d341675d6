"""From an answer and a fault to steps on the wire. Pure: `delivery.py` performs the steps in one `match`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Final

from gateway.simulator.answer import Answer, Billed, Dialect, Frame, JsonObject
from gateway.simulator.faults import Fault

_PIECE_BYTES = 64
_LEAST_STEADY_S = 0.02  # from here on a few milliseconds more do not matter, and streams may share their waits
_JSON = "application/json"
_EVENTS = "text/event-stream; charset=utf-8"
_PAGE = "text/html; charset=utf-8"
_HTML: Final = (b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head>\n"
                b"<body><center><h1>502 Bad Gateway</h1></center><hr><center>proxy</center></body></html>\n")
# Each looks like the format up to a point: a JSON document that stops, bytes that are not UTF-8, JSON of another shape.
_GARBAGE: Final = {
    "json": b'{"id": "chatcmpl-1", "choices": [{"index": 0, "del',
    "bytes": b"\xff\xfe\x00\x80data\xc3\x28",
    "shape": b'{"unexpected": [true]}',
}


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Whole:
    """A complete answer in one write. `chunks` of it count as sent; `cut` says that it is not all of what was due."""

    status: int
    body: bytes
    content_type: str = _JSON
    headers: dict[str, str] = field(default_factory=dict)
    usage: JsonObject | None = None
    chunks: int = 0
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and headers; without a length the body is chunked."""

    content_type: str
    status: int = 200
    length: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes of the body, the last ones of `chunks` chunks; `usage` is set where they tell it. `tokens` were made for them."""

    data: bytes
    chunks: int = 1
    usage: JsonObject | None = None
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Steady:
    """Whole frames at a pace, each a chunk after a wait of `every_s`."""

    frames: Iterator[Frame]
    every_s: float


@dataclass(frozen=True, slots=True)
class End:
    """The end that HTTP promises. `cut`: the answer itself is not whole. `usage`: what the whole of it told."""

    cut: bool = False
    usage: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection as if all had been sent: fewer bytes than the headers promised."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Break the connection (TCP RST)."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Send nothing more, for as long as the client stays."""


Step = Wait | Whole | Head | Write | Steady | End | Drop | Reset | Hang


def steps(answer: Answer, fault: Fault, dialect: Dialect) -> Iterator[Step]:
    """What happens on the wire, in order. The last step is always one of `Whole`, `End`, `Drop`, `Reset` and `Hang`."""
    found = _steps(answer, fault, dialect)
    return found if fault.content_type is None else _retyped(found, fault.content_type)


def _retyped(found: Iterator[Step], content_type: str) -> Iterator[Step]:
    for step in found:
        yield replace(step, content_type=content_type) if isinstance(step, Whole | Head) else step


def _steps(answer: Answer, fault: Fault, dialect: Dialect) -> Iterator[Step]:
    if fault.delay_headers_s:
        yield Wait(fault.delay_headers_s)
    if fault.reset:
        yield Reset()
    elif fault.hang:
        yield Hang()
    elif fault.status is not None:
        yield _error(fault.status, fault, dialect)
    elif fault.garbage == "html":
        yield Whole(200, _HTML, _PAGE)
    elif fault.empty:
        yield Whole(200, b"", _EVENTS if answer.frames is not None else _JSON)
    elif answer.frames is not None:
        yield from _stream(answer, answer.frames, fault, dialect)
    else:
        yield from _plain(answer, fault, dialect)


def owed(answer: Answer, fault: Fault) -> Billed | None:
    """What is charged before anything goes out: nothing for an error, of a stream its prompt, else the whole.

    An answer that never arrives was made all the same: a client cannot tell, and a provider may charge for it.
    """
    if answer.billed is None or fault.status is not None:
        return None
    unseen = fault.reset or fault.hang or fault.empty or fault.garbage == "html"
    return answer.billed if answer.frames is None or unseen else replace(answer.billed, completion_tokens=0)


def _error(status: int, fault: Fault, dialect: Dialect) -> Whole:
    headers = {} if fault.retry_after_s is None else {"retry-after": f"{fault.retry_after_s:g}"}
    if fault.garbage == "html":
        return Whole(status, _HTML, _PAGE, headers)
    error = dialect.error(status)
    body = error.body if fault.garbage is None else _GARBAGE[fault.garbage]
    return Whole(status, body, headers={**error.headers, **headers})


def _stream(answer: Answer, honest: Iterable[Frame], fault: Fault, dialect: Dialect) -> Iterator[Step]:
    if fault.length_off is not None:
        yield from _mismeasured(answer, honest, fault, fault.length_off)
        return
    yield Head(_EVENTS, headers=dict(answer.headers))
    frames = iter(honest)
    before = _break_after(fault)
    yield from _paced(frames if before is None else islice(frames, before), fault)
    if fault.cut_after_chunks is not None:
        yield Reset()
    elif fault.stall_after_chunks is not None:
        yield Hang()
    elif fault.end_after_chunks is not None:
        yield End(cut=True)
    elif fault.error_event_after_chunks is not None:
        yield Write(dialect.error_frame())
        yield End(cut=True)
    else:
        if fault.garbage is not None:
            yield from _paced(chain([Frame(b"data: " + _GARBAGE[fault.garbage] + b"\n\n")], frames), fault, begun=before)
        yield from _ending(answer, fault)
        yield End()


def _mismeasured(answer: Answer, honest: Iterable[Frame], fault: Fault, off: int) -> Iterator[Step]:
    """A whole stream under a length that it has not; a client may not wait for the rest, so the connection ends with it."""
    frames, ending = list(honest), list(_ending(answer, fault))
    length = sum(len(frame.data) for frame in frames) + sum(len(step.data) for step in ending)
    yield Head(_EVENTS, answer.status, max(0, length + off), dict(answer.headers))
    yield from _paced(frames, fault)
    yield from ending
    yield Drop()


def _ending(answer: Answer, fault: Fault) -> Iterator[Write]:
    """The usage, where it was asked for, and the mark of the end."""
    if answer.usage_frame:
        yield from _pieces(Frame(answer.usage_frame), fault.chunk_bytes, usage=answer.usage)
    if not fault.drop_done:
        yield from _pieces(Frame(answer.done_frame), fault.chunk_bytes, chunks=0)


def _break_after(fault: Fault) -> int | None:
    """How many frames go out as they should, None for all."""
    counts = (fault.cut_after_chunks, fault.stall_after_chunks, fault.end_after_chunks, fault.error_event_after_chunks)
    garbage = fault.garbage_after_chunks if fault.garbage is not None else None
    return next((count for count in counts if count is not None), garbage)


def _paced(frames: Iterable[Frame], fault: Fault, *, begun: int | None = 0) -> Iterator[Step]:
    """Frames with the delays before the first token and between two; `begun` frames have gone before."""
    frames, between = iter(frames), fault.delay_between_tokens_s or 0.0
    delay = between if begun else fault.delay_first_token_s
    steady = between >= _LEAST_STEADY_S and not fault.chunk_bytes
    for frame in islice(frames, 1) if steady else frames:
        if delay:
            yield Wait(delay)
        yield from _pieces(frame, fault.chunk_bytes)
        delay = between
    if steady:
        yield Steady(frames, between)


def _pieces(frame: Frame, size: int, *, chunks: int = 1, usage: JsonObject | None = None) -> Iterator[Write]:
    """One frame, cut every `size` bytes (0: whole); it counts when its last byte is out, its tokens with the first."""
    data, tokens = frame.data, frame.tokens
    cut = (len(data) - 1) // size * size if size else 0
    for start in range(0, cut, size or 1):
        yield Write(data[start:start + size], 0, tokens=tokens)
        tokens = 0
    yield Write(data[cut:], chunks, usage, tokens)


def _plain(answer: Answer, fault: Fault, dialect: Dialect) -> Iterator[Step]:
    headers = dict(answer.headers)
    size = fault.chunk_bytes or _PIECE_BYTES
    before = _break_after(fault)
    if fault.garbage is not None:
        yield Whole(200, _GARBAGE[fault.garbage], headers=headers)
    elif fault.error_event_after_chunks is not None:
        yield Whole(200, dialect.error(500).body, headers=headers)
    elif fault.end_after_chunks is not None:
        sent = min(fault.end_after_chunks * size, len(answer.body) - 1)
        yield Whole(answer.status, answer.body[:sent], headers=headers, chunks=sent // size, cut=True)
    elif before is not None or fault.length_off is not None or fault.chunk_bytes or _delayed(fault):
        yield from _dripped(answer, fault, size, before)
    else:
        yield Whole(answer.status, answer.body, headers=headers, usage=answer.usage)


def _delayed(fault: Fault) -> bool:
    return bool(fault.delay_first_token_s or fault.delay_between_tokens_s)


def _dripped(answer: Answer, fault: Fault, size: int, before: int | None) -> Iterator[Step]:
    """A plain body piece by piece, the length of all of it announced; a break leaves at least its last byte unsent."""
    yield Head(_JSON, answer.status, max(0, len(answer.body) + (fault.length_off or 0)), dict(answer.headers))
    body = answer.body if before is None else answer.body[:min(before * size, len(answer.body) - 1)]
    yield from _paced((Frame(body[start:start + size]) for start in range(0, len(body), size)), fault)
    if fault.cut_after_chunks is not None or fault.length_off is not None:
        yield Drop()
    elif fault.stall_after_chunks is not None:
        yield Hang()
    else:
        yield End(usage=answer.usage)
