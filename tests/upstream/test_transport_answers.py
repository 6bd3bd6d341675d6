"""Which answers a transport takes, where it says they end, and when a connection may carry the next request."""

import pytest

from gateway.errors import AttemptFailed

H = b"HTTP/1.1 200 OK\r\n"
OK = H + b"content-length: 2\r\n\r\nok"
NEXT = H + b"content-length: 4\r\n\r\nnext"
CHUNKED = H + b"transfer-encoding: chunked\r\n\r\n"

GOOD = {
    "length": (OK, 200, b"ok"),
    "length 0": (H + b"content-length: 0\r\n\r\n", 200, b""),
    "length with space": (H + b"content-length:   2  \r\n\r\nok", 200, b"ok"),
    "chunked": (CHUNKED + b"2\r\nok\r\n1\r\n!\r\n0\r\n\r\n", 200, b"ok!"),
    "chunk extensions": (CHUNKED + b'2;a=b;c="d"\r\nok\r\n0;x\r\n\r\n', 200, b"ok"),
    "trailers": (CHUNKED + b"2\r\nok\r\n0\r\nx-checksum: 1\r\nx-other: 2\r\n\r\n", 200, b"ok"),
    "chunk sizes in capitals and zeros": (CHUNKED + b"00000A\r\n0123456789\r\n000\r\n\r\n", 200, b"0123456789"),
    "CHUNKED": (H + b"Transfer-Encoding: Chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, b"ok"),
    "100 before": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok"),
    "103 with headers before": (b"HTTP/1.1 103 Early\r\nlink: x\r\nx-a: early\r\n\r\n" * 2 + OK, 200, b"ok"),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "304 with the length of what it stands for": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, b""),
    "no reason": (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", 200, b"ok"),
    "empty header": (H + b"x-empty:\r\ncontent-length: 2\r\n\r\nok", 200, b"ok"),
    "upgrade offered": (H + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\nok", 200, b"ok"),
    "identity": (H + b"content-encoding: identity\r\ncontent-length: 2\r\n\r\nok", 200, b"ok"),
    "500": (b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno", 500, b"no"),
}
LAST = {  # good answers after which the connection must not be used again
    "close": H + b"connection: close\r\ncontent-length: 2\r\n\r\nok",
    "close among others": H + b"connection: x-thing, Close\r\ncontent-length: 2\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "a second answer in the packet": OK + NEXT,
    "a second answer after chunks": CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + NEXT,
    "an interim answer after the final one": OK + b"HTTP/1.1 100 Continue\r\n\r\n",
}
LEFT_OVER = {  # what aiohttp's parser drops without a word
    "part of a second answer": OK + b"HTTP/1.1 200 OK\r\ncontent-le",
    "one byte more": OK + b"H",
    "garbage": OK + b"\0\0\0",
    "a body longer than its length": H + b"content-length: 2\r\n\r\nokay",
    "a body where none may be": b"HTTP/1.1 204 OK\r\ncontent-length: 2\r\n\r\nok",
}


@pytest.mark.parametrize(("raw", "status", "body"), GOOD.values(), ids=GOOD.keys())
async def test_a_good_answer_is_taken_whole_and_its_connection_used_again(client, server, raw, status, body):
    answer, peer = await client.meet(server, raw)
    assert answer.status == status
    assert "x-a" not in answer.headers, "what an interim answer said is not the final one's"
    assert "x-checksum" not in answer.headers
    assert await client.body(answer) == body
    answer.release()
    answer.release()
    later = await client.again(server, peer, NEXT)
    assert await later.read(limit=4, idle_s=9) == b"next"
    later.release()


@pytest.mark.parametrize(("raw", "status", "body"), GOOD.values(), ids=GOOD.keys())
async def test_splitting_an_answer_anywhere_changes_nothing(client, server, raw, status, body):
    """Each byte in a packet of its own; every single split point is tried on the connection itself, in its own test."""
    sending = client.start(server.url())
    peer = await server.accept()
    await peer.request()
    await peer.send(*(bytes([byte]) for byte in raw))
    answer = await sending
    assert (answer.status, await answer.read(limit=99, idle_s=9)) == (status, body)
    answer.release()
    (await client.again(server, peer, NEXT)).abort()


@pytest.mark.parametrize("raw", [*LAST.values(), *LEFT_OVER.values()], ids=[*LAST, *LEFT_OVER])
@pytest.mark.parametrize("whole", [True, False], ids=["one packet", "two packets"])
async def test_what_forbids_another_use_closes_the_connection(client, server, raw, whole, is_lean):
    """A byte left over would be read as the start of the next caller's answer."""
    if not is_lean and raw in LEFT_OVER.values():
        pytest.skip("aiohttp's parser drops what is left over without a word")
    sending = client.start(server.url())
    peer = await server.accept()
    await peer.request()
    if not whole:
        end = raw.index(b"\r\n\r\n") + 5
        await peer.send(raw[:end - 2])
        raw = raw[end - 2:]
    await peer.send(raw)
    answer = await sending
    await client.body(answer)
    answer.release()
    sending = client.start(server.url("/other"))
    other = await server.accept()
    assert (await other.request()).line == "POST /other HTTP/1.1"
    await other.send(NEXT)
    assert await (await sending).read(limit=4, idle_s=9) == b"next"
    await peer.gone()


async def test_an_answer_without_a_length_ends_with_its_connection(client, server):
    answer, peer = await client.meet(server, H + b"content-type: text/plain\r\n\r\nsome ")
    first = await answer.chunk(timeout_s=9)
    await peer.send(b"more")
    peer.close()
    assert first + await client.body(answer) == b"some more"
    answer.release()


@pytest.mark.parametrize("head", [b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b""])
async def test_an_answer_to_head_has_no_body_whatever_it_says(client, server, head):
    answer, _ = await client.meet(server, H + head + b"\r\n", method="HEAD")
    assert await answer.read(limit=0, idle_s=9) == b""
    answer.release()


async def test_bytes_that_come_while_nobody_asks_close_the_connection(client, server):
    """A server that gives up on an idle connection says 408 first: that is no answer to the next request."""
    answer, peer = await client.meet(server, OK)
    await client.body(answer)
    answer.release()
    await peer.send(b"HTTP/1.1 408 Timeout\r\ncontent-length: 2\r\n\r\nno")
    answer, _ = await client.meet(server, NEXT)
    assert (answer.status, await client.body(answer)) == (200, b"next")
    answer.release()
    await peer.gone()


async def test_an_answer_that_lies_ready_before_the_request_is_not_its_answer(client, server):
    """Sent so late that the event loop cannot have told of it: the socket itself must be asked."""
    answer, peer = await client.meet(server, OK)
    await client.body(answer)
    answer.release()
    peer.send_now(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
    answer, _ = await client.meet(server, NEXT)
    assert await client.body(answer) == b"next"
    answer.release()


async def test_the_first_of_a_repeated_header_is_told_with_its_name_in_lower_case(client, server):
    answer, _ = await client.meet(server, H + b"X-One: 1\r\nX-ONE: 2\r\nContent-Length: 0\r\n\r\n")
    assert answer.headers["x-one"] == "1"
    answer.release()


async def test_a_header_value_that_is_not_ascii_is_read_byte_by_byte(client, server):
    """Latin-1 loses nothing and cannot fail; a lone surrogate would break the journal later."""
    answer, _ = await client.meet(server, H + b"x-name: K\xe4se \xe2\x9c\x93\r\ncontent-length: 0\r\n\r\n")
    assert answer.headers["x-name"].encode("latin-1") == b"K\xe4se \xe2\x9c\x93"
    answer.release()


MALFORMED = {
    "not HTTP": b"hello there\r\n\r\n",
    "another protocol": b"\x15\x03\x01\x00\x02\x02\x46",
    "ICY": b"ICY 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "status 99": b"HTTP/1.1 99 OK\r\ncontent-length: 2\r\n\r\nok",
    "status 000": b"HTTP/1.1 000 OK\r\ncontent-length: 2\r\n\r\nok",
    "status 600": b"HTTP/1.1 600 OK\r\ncontent-length: 2\r\n\r\nok",
    "status 2000": b"HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\nok",
    "101": b"HTTP/1.1 101 Switch\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "101 alone": b"HTTP/1.1 101 Switch\r\n\r\n",
    "encoding and length": H + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
    "length and encoding": H + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": H + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok!",
    "the same length twice": H + b"content-length: 2\r\ncontent-length: 2\r\n\r\nok",
    "a list of lengths": H + b"content-length: 2, 2\r\n\r\nok",
    "a signed length": H + b"content-length: +2\r\n\r\nok",
    "a negative length": H + b"content-length: -2\r\n\r\nok",
    "an empty length": H + b"content-length: \r\n\r\nok",
    "a length in hex": H + b"content-length: 0x2\r\n\r\nok",
    "a length beyond 64 bits": H + b"content-length: 99999999999999999999\r\n\r\nok",
    "identity encoding": H + b"transfer-encoding: identity\r\n\r\nok",
    "gzip, chunked": H + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": H + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "xchunked": H + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": H + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "compressed": H + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\nok",
    "compressed in a second header": H + b"content-encoding: identity\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\nok",
    "NUL in a header": H + b"x-a: b\0c\r\ncontent-length: 2\r\n\r\nok",
    "bare CR in a header": H + b"x-a: b\rc\r\ncontent-length: 2\r\n\r\nok",
    "space before the colon": H + b"x-a : b\r\ncontent-length : 2\r\n\r\nok",
    "no colon": H + b"what is this\r\ncontent-length: 2\r\n\r\nok",
    "no name": H + b": b\r\ncontent-length: 2\r\n\r\nok",
    "a huge header": H + b"x-a: " + b"y" * 70_000 + b"\r\ncontent-length: 2\r\n\r\nok",
    "a header that never ends": H + b"x-a: " + b"y" * 400_000,
    "200 headers": H + b"".join(b"x-%d: y\r\n" % n for n in range(200)) + b"content-length: 2\r\n\r\nok",
}
STRICT = {  # aiohttp is lenient here; none of it moves the end of a message
    "folded header": H + b"x-a: b\r\n c\r\ncontent-length: 2\r\n\r\nok",
    "bare LF": b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
    "many headers of the same name": H + b"x-a: y\r\n" * 200 + b"content-length: 2\r\n\r\nok",
    "64 KiB in many headers": H + b"".join(b"x-%d: %s\r\n" % (n, b"y" * 7000) for n in range(10)) + b"content-length: 2\r\n\r\nok",
    "interim answers without end": b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n" * 20_000,
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_no_answer_that_can_be_taken_is_malformed_and_closes_the_connection(client, server, raw):
    """Where two parsers may disagree about an answer's end, the wise one does not guess."""
    sending = client.start(server.url())
    peer = await server.accept()
    await peer.request()
    peer.writer.write(raw)
    with pytest.raises(AttemptFailed) as failure:
        await sending
    assert failure.value.cause == "malformed"
    assert "\n" not in failure.value.message
    await peer.gone()


@pytest.mark.parametrize("raw", STRICT.values(), ids=STRICT.keys())
async def test_the_lean_transport_takes_no_lenient_reading(client, server, raw, is_lean):
    if not is_lean:
        pytest.skip("aiohttp reads it leniently")
    sending = client.start(server.url())
    peer = await server.accept()
    await peer.request()
    peer.writer.write(raw)
    with pytest.raises(AttemptFailed, match="malformed"):
        await sending
    await peer.gone()


BROKEN = {
    "not a size": b"zz\r\n", "a negative size": b"-1\r\nx", "0x": b"0x2\r\nok\r\n", "a size beyond 64 bits": b"f" * 20 + b"\r\nok",
    "a chunk longer than its size": b"1\r\nok\r\n0\r\n\r\n", "an empty size": b"\r\nok\r\n", "a length in the trailers": b"0\r\ncontent-length: 9\r\n\r\n",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("whole", [True, False], ids=["read", "chunks"])
async def test_a_body_that_breaks_its_own_framing_is_malformed(client, server, raw, whole):
    """Never a normal end, and not only when the idle deadline passes."""
    answer, peer = await client.meet(server, CHUNKED + b"2\r\nok\r\n")
    assert await answer.chunk(timeout_s=9) == b"ok"
    peer.writer.write(raw)
    with pytest.raises(AttemptFailed) as failure:
        await (answer.read(limit=99, idle_s=9) if whole else client.body(answer))
    assert failure.value.cause == "malformed"
    answer.release()
    await peer.gone()


@pytest.mark.parametrize("raw", [b"0\r\n" + b"x-a: y\r\n" * 50_000, b"0\r\nx-a: " + b"y" * 400_000, b"2;" + b"e" * 400_000],
                         ids=["trailers", "a trailer", "a chunk extension"])
async def test_framing_without_an_end_is_not_read_for_ever(client, server, raw, is_lean):
    if not is_lean:
        pytest.skip("aiohttp leaves it to the idle deadline")
    answer, peer = await client.meet(server, CHUNKED)
    peer.writer.write(raw)
    with pytest.raises(AttemptFailed, match="malformed"):
        await answer.chunk(timeout_s=9)
    await peer.gone()
