"""Every way in which the network fails has its cause, ends in bounded time and leaves no connection behind."""

import asyncio

import pytest

from gateway.errors import AttemptFailed

H = b"HTTP/1.1 200 OK\r\n"
OK = H + b"content-length: 2\r\n\r\nok"
CHUNKED = H + b"transfer-encoding: chunked\r\n\r\n"
SOON_S = 0.05  # only ever for a deadline that must fire


async def cause_of(awaitable) -> str:
    with pytest.raises(AttemptFailed) as failure:
        async with asyncio.timeout(10):
            await awaitable
    assert failure.value.__cause__ is not failure.value
    return failure.value.cause


async def test_nobody_listens(client, server):
    server_url = server.url()
    refused = client.start(server_url.replace(str(server.port), "1"))
    assert await cause_of(refused) == "connect"
    assert refused.exception().retryable


async def test_a_name_that_cannot_exist(client):
    """It is not even asked for: a label has at most 63 characters."""
    assert await cause_of(client.send(f"http://{'a' * 64}.invalid/")) == "connect"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncont"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_connection_that_ends_before_the_headers_is_a_reset_that_may_be_retried(client, server, said, how):
    sending = client.start(server.url(), body=b"{}")
    peer = await server.accept()
    await peer.request()
    await peer.send(said)
    getattr(peer, how)()
    assert await cause_of(sending) == "reset"
    assert sending.exception().retryable


async def test_a_used_connection_that_dies_under_a_request_is_a_reset_and_nothing_is_sent_twice(client, server):
    """Whether the first one was worked on cannot be known, so only the caller may decide to repeat it."""
    answer, peer = await client.meet(server, OK)
    await client.body(answer)
    answer.release()
    sending = client.start(server.url(), body=b"{}")
    await peer.request()
    peer.close()
    assert await cause_of(sending) == "reset"
    assert len(server.peers) == 1


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_connection_that_died_while_idle_is_not_used(client, server, how):
    answer, peer = await client.meet(server, OK)
    await client.body(answer)
    answer.release()
    getattr(peer, how)()
    await peer.writer.wait_closed()
    later, _ = await client.meet(server, OK)
    assert await client.body(later) == b"ok"
    later.release()


@pytest.mark.parametrize("head", [H + b"content-length: 9\r\n\r\nabc", CHUNKED + b"3\r\nabc\r\n", CHUNKED + b"9\r\nabc",
                                  CHUNKED + b"3\r\nabc\r\n0\r\n"])
@pytest.mark.parametrize("whole", [True, False], ids=["read", "chunks"])
async def test_an_answer_that_stops_short_is_cut(client, server, head, whole):
    """A shortened 200 must never look like an answer."""
    answer, peer = await client.meet(server, head)
    assert await answer.chunk(timeout_s=9) == b"abc"
    peer.close()
    assert await cause_of(answer.read(limit=99, idle_s=9) if whole else answer.chunk(timeout_s=9)) == "cut"
    answer.release()


@pytest.mark.parametrize("head", [H + b"content-length: 9\r\n\r\nabc", CHUNKED + b"3\r\nabc\r\n", H + b"\r\nabc"],
                         ids=["length", "chunked", "until close"])
async def test_a_reset_in_the_middle_is_a_reset_even_where_a_close_would_be_the_end(client, server, head):
    answer, peer = await client.meet(server, head)
    assert await answer.chunk(timeout_s=9) == b"abc"
    peer.reset()
    assert await cause_of(answer.chunk(timeout_s=9)) == "reset"
    answer.release()


@pytest.mark.parametrize("head", [H + b"content-length: 12\r\n\r\n", CHUNKED + b"c\r\n", H + b"\r\n"], ids=["length", "chunked", "until close"])
async def test_an_answer_over_the_limit_is_too_large(client, server, head):
    answer, _ = await client.meet(server, head + b"hello world!")
    with pytest.raises(AttemptFailed) as failure:
        await answer.read(limit=11, idle_s=9)
    assert (failure.value.cause, failure.value.retryable) == ("too_large", False)
    answer.release()


async def test_a_length_over_the_limit_is_refused_before_the_body_comes(client, server):
    answer, peer = await client.meet(server, H + b"content-length: 1000000000\r\n\r\n")
    assert await cause_of(answer.read(limit=1000, idle_s=9)) == "too_large"
    await peer.gone()


async def test_an_answer_of_exactly_the_limit_is_taken(client, server):
    answer, _ = await client.meet(server, H + b"content-length: 11\r\n\r\nhello world")
    assert await answer.read(limit=11, idle_s=9) == b"hello world"
    answer.release()


async def test_no_headers_in_time(client, server):
    sending = client.start(server.url(), headers_s=SOON_S)
    peer = await server.accept()
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\n")
    assert await cause_of(sending) == "timeout:headers"
    await peer.gone()


async def test_an_interim_answer_does_not_count_as_headers(client, server):
    sending = client.start(server.url(), headers_s=SOON_S)
    peer = await server.accept()
    await peer.request()
    await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert await cause_of(sending) == "timeout:headers"
    await peer.gone()


async def test_a_server_that_does_not_read_the_request_meets_the_headers_deadline(client, server):
    """Nothing waits for ever, and what is not yet sent is not sent any more."""
    sending = client.start(server.url(), body=b"x" * 30_000_000, headers_s=SOON_S)
    peer = await server.accept()
    await peer.head()
    assert await cause_of(sending) == "timeout:headers"
    await peer.gone()


async def test_no_connection_in_time_counts_the_wait_for_a_turn(make, client_of, server):
    client = client_of(make(connections_per_origin=1))
    first, peer = await client.meet(server, H + b"content-length: 2\r\n\r\n")
    assert await cause_of(client.send(server.url(), connect_s=SOON_S)) == "timeout:connect"
    await peer.send(b"ok")
    await client.body(first)
    first.release()
    (await client.again(server, peer, OK)).abort()


async def test_a_handshake_that_never_ends_is_a_connect_timeout(client, server):
    sending = client.start(server.url(scheme="https"), connect_s=SOON_S)
    peer = await server.accept()
    assert await cause_of(sending) == "timeout:connect"
    await peer.gone()


async def test_silence_in_the_middle_is_an_idle_timeout(client, server):
    answer, peer = await client.meet(server, CHUNKED + b"3\r\nabc\r\n")
    assert await answer.chunk(timeout_s=9) == b"abc"
    assert await cause_of(answer.chunk(timeout_s=SOON_S)) == "timeout:idle"
    await peer.gone()


async def test_a_whole_body_that_stalls_is_an_idle_timeout(client, server):
    """A provider that stops in the middle of a plain answer must not hold the call until its whole time is up."""
    answer, peer = await client.meet(server, CHUNKED + b"3\r\nabc\r\n")
    assert await cause_of(answer.read(limit=99, idle_s=SOON_S)) == "timeout:idle"
    await peer.gone()


async def test_a_long_deadline_does_not_hide_a_shorter_one_after_it(client, server):
    """The timers of one connection are shared by all its waits."""
    answer, peer = await client.meet(server, CHUNKED + b"3\r\nabc\r\n", headers_s=100.0)
    assert await answer.chunk(timeout_s=100.0) == b"abc"
    waiting = asyncio.ensure_future(answer.chunk(timeout_s=100.0))
    await peer.send(b"1\r\nd\r\n")
    assert await waiting == b"d"
    assert await cause_of(answer.chunk(timeout_s=SOON_S)) == "timeout:idle"


async def test_a_short_deadline_that_was_kept_does_not_shorten_the_next(client, server):
    answer, peer = await client.meet(server, CHUNKED + b"3\r\nabc\r\n")
    assert await answer.chunk(timeout_s=9) == b"abc"
    waiting = asyncio.ensure_future(answer.chunk(timeout_s=SOON_S))
    await asyncio.sleep(0)
    await peer.send(b"1\r\nd\r\n")
    assert await waiting == b"d"
    waiting = asyncio.ensure_future(answer.chunk(timeout_s=9))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2 * SOON_S):
            await asyncio.shield(waiting)
    await peer.send(b"1\r\ne\r\n")
    assert await waiting == b"e"
    answer.abort()


async def test_abort_closes_at_once(client, server):
    """Whoever generates tokens for nobody bills for them."""
    answer, peer = await client.meet(server, CHUNKED + b"3\r\nabc\r\n")
    answer.abort()
    await peer.gone()
    answer.abort()
    answer.release()


async def test_release_before_the_end_closes(client, server):
    answer, peer = await client.meet(server, CHUNKED + b"3\r\nabc\r\n")
    assert await answer.chunk(timeout_s=9) == b"abc"
    answer.release()
    await peer.gone()


async def test_abort_after_the_end_harms_no_other_request(client, server):
    answer, peer = await client.meet(server, OK)
    assert await client.body(answer) == b"ok"
    answer.release()
    sending = client.start(server.url())
    await peer.request()
    answer.abort()
    await peer.send(OK)
    later = await sending
    assert await client.body(later) == b"ok"
    later.release()


@pytest.mark.parametrize("body", [b"{}", b"x" * 30_000_000], ids=["small", "large"])
async def test_a_cancelled_send_closes_the_connection(client, server, body):
    sending = client.start(server.url(), body=body)
    peer = await server.accept()
    await peer.head()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await peer.gone()


@pytest.mark.parametrize("whole", [True, False], ids=["read", "chunks"])
async def test_a_cancelled_wait_for_the_body_closes_the_connection(client, server, whole):
    answer, peer = await client.meet(server, CHUNKED + b"3\r\nabc\r\n")
    assert await answer.chunk(timeout_s=9) == b"abc"
    waiting = asyncio.ensure_future(answer.read(limit=99, idle_s=9) if whole else answer.chunk(timeout_s=9))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await peer.gone()
    answer.release()


async def test_a_closed_transport_closes_its_answers_and_takes_no_requests(make, client_of, server):
    client = client_of(make())
    answer, peer = await client.meet(server, CHUNKED + b"3\r\nabc\r\n")
    await client.transport.close()
    await client.transport.close()
    await peer.gone()
    answer.release()
    assert await cause_of(client.send(server.url())) == "connect"


class TestTls:
    """Names and authorities are checked; a provider's key is not handed to whoever answers."""

    async def test_a_good_certificate(self, make, client_of, tls_server, authority):
        client = client_of(make(tls=authority))
        answer, peer = await client.meet(tls_server, OK, url=tls_server.url(host="localhost", scheme="https"), body=b"{}")
        assert await client.body(answer) == b"ok"
        answer.release()
        sending = client.start(tls_server.url(host="localhost", scheme="https"))
        await peer.request()
        await peer.send(OK)
        assert await client.body(await sending) == b"ok"
        assert len(tls_server.peers) == 1

    @pytest.mark.parametrize("how", ["close", "reset"])
    async def test_a_cut_answer_is_no_answer_over_tls_either(self, make, client_of, tls_server, authority, how):
        client = client_of(make(tls=authority))
        answer, peer = await client.meet(tls_server, H + b"content-length: 9\r\n\r\nabc",
                                         url=tls_server.url(host="localhost", scheme="https"))
        assert await answer.chunk(timeout_s=9) == b"abc"
        getattr(peer, how)()
        assert await cause_of(answer.chunk(timeout_s=9)) in {"cut", "reset"}

    async def test_abort_closes_at_once_over_tls_too(self, make, client_of, tls_server, authority):
        client = client_of(make(tls=authority))
        answer, peer = await client.meet(tls_server, CHUNKED, url=tls_server.url(host="localhost", scheme="https"))
        answer.abort()
        await peer.gone()

    async def test_another_host_than_the_certificates(self, make, client_of, tls_server, authority):
        sending = client_of(make(tls=authority)).start(tls_server.url(host="127.0.0.1", scheme="https"))
        assert await cause_of(sending) == "tls"
        assert not sending.exception().retryable

    async def test_an_unknown_authority(self, client, tls_server):
        sending = client.start(tls_server.url(host="localhost", scheme="https"))
        assert await cause_of(sending) == "tls"
        assert not sending.exception().retryable

    async def test_a_server_that_does_not_speak_tls(self, client, server):
        sending = client.start(server.url(scheme="https"))
        peer = await server.accept()
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert await cause_of(sending) == "tls"
