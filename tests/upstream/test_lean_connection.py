"""One connection fed by hand: every split of every answer, and what random damage may never do."""

import asyncio
import socket
from itertools import pairwise

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from gateway.errors import AttemptFailed
from gateway.upstream.lean_connection import Connection

H = b"HTTP/1.1 200 OK\r\n"
CHUNKED = H + b"transfer-encoding: chunked\r\n\r\n"
ANSWERS = [
    H + b"Content-Length: 5\r\nX-A: b\r\nx-empty:\r\n\r\nhello",
    CHUNKED + b"5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nx-t: 1\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + H + b"content-length: 2\r\n\r\nok",
    b"HTTP/1.1 204 No\r\n\r\n",
    H + b"connection: close\r\ncontent-length: 2\r\n\r\nok",
    H + b"content-length: 2\r\n\r\nok" + H + b"content-length: 4\r\n\r\nevil",
    H + b"content-length: 2\r\n\r\nokay",
    H + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    H + b"transfer-encoding: identity\r\n\r\nok",
    H + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nok",
    CHUNKED + b"5\r\nhelloX\r\n0\r\n\r\n",
    CHUNKED + b"ffffffffffffffffff\r\nhello",
    b"HTTP/1.1 101 Switch\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nzzz",
    b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"nonsense\r\n\r\n",
    H + b"\r\nuntil the end",
]


class Socket(asyncio.Transport):
    """A transport that only takes note."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = socket.socketpair()
        self.aborted = False

    def get_extra_info(self, name, default=None):
        return self.ends[0] if name == "socket" else default

    def write(self, data):
        pass

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def abort(self):
        self.aborted = True
        for end in self.ends:
            end.close()


class Owner:
    def __init__(self) -> None:
        self.events: list[str] = []

    def opened(self, _):
        self.events.append("opened")

    def retired(self, _):
        self.events.append("retired")

    def lost(self, _):
        self.events.append("lost")


async def feed(pieces: list[bytes]) -> tuple[int, bytes, str, bool]:
    """Status, body, how it failed, and whether the connection would be used again. At the end of `pieces` the peer closes."""
    owner, sock = Owner(), Socket()
    connection = Connection("http://peer", asyncio.get_running_loop(), owner)
    connection.connection_made(sock)
    sending = asyncio.ensure_future(connection.exchange(b"GET / HTTP/1.1\r\n\r\n", b"", head_only=False, headers_s=9))
    await asyncio.sleep(0)
    body, failure = b"", ""
    for piece in pieces:
        connection.data_received(piece)
    if not connection._complete:
        connection.eof_received()
    try:
        await sending
        while data := await connection.chunk(9):
            body += data
    except AttemptFailed as error:
        failure = error.cause
    usable = connection.release()
    connection.close()
    connection.connection_lost(None)
    assert owner.events[0] == "opened"
    assert owner.events.count("retired") == 1
    assert owner.events[-1] == "lost"
    assert sock.aborted
    return connection.status, body, failure, usable


@pytest.mark.parametrize("raw", ANSWERS)
async def test_every_split_of_an_answer_reads_the_same(raw):
    """Packets are cut by the network, not by the message."""
    whole = await feed([raw])
    for at in range(1, len(raw)):
        assert await feed([raw[:at], raw[at:]]) == whole, at
    assert await feed([raw[at:at + 1] for at in range(len(raw))]) == whole


@seed(20261122)
@settings(max_examples=400, deadline=None)
@given(raw=st.sampled_from(ANSWERS[:6]), damage=st.lists(st.tuples(st.integers(0, 120), st.binary(max_size=3)), min_size=1, max_size=4),
       cuts=st.lists(st.integers(0, 140), max_size=4))
def test_damage_never_lets_two_ways_of_cutting_disagree(raw, damage, cuts):
    """Where they do, one of them has taken bytes of one message for another's. Blank lines are exempt: nothing can be read into them."""
    for at, junk in damage:
        raw = raw[:at] + junk + raw[at + 1:]
    if raw.endswith((b"\r", b"\n")):
        raw += b"x"
    points = sorted({0, *(min(cut, len(raw)) for cut in cuts), len(raw)})
    pieces = [raw[start:end] for start, end in pairwise(points)]

    async def both():
        return await feed([raw]), await feed(pieces)

    whole, cut = asyncio.run(both())
    assert whole == cut


async def test_a_connection_that_never_opened_is_retired_once_and_never_lost():
    owner = Owner()
    connection = Connection("http://peer", asyncio.get_running_loop(), owner)
    connection.close()
    connection.close()
    assert owner.events == ["retired"]
    assert not connection.is_quiet()
    with pytest.raises(AttemptFailed):
        await connection.exchange(b"x", b"", head_only=False, headers_s=9)
    assert "closed" in repr(connection)
