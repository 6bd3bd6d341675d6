"""What a transport writes, and what it refuses to write."""

import pytest

from gateway.errors import AttemptFailed

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def test_a_request_arrives_as_it_was_given_and_with_nothing_of_the_transports_own_taste(client, server):
    """No user agent, no accept, no cookie: what a provider sees is what the adapter wrote."""
    sending = client.start(server.url("/v1/chat"), body=b'{"a":1}', headers={"content-type": "application/json", "x-one": "1"})
    peer = await server.accept()
    received = await peer.request()
    await peer.send(OK)
    assert await (await sending).read(limit=9, idle_s=9) == b"ok"
    assert received.line == "POST /v1/chat HTTP/1.1"
    assert received.body == b'{"a":1}'
    assert received.headers == {"host": f"127.0.0.1:{server.port}", "content-type": "application/json", "x-one": "1",
                                "accept-encoding": "identity", "content-length": "7"}


@pytest.mark.parametrize("path", ["/", "/a/../b/./c", "//double//slash", "/%7euser/%2F", "/~user", "/a;b=c?d=%20&e=+&f=:/?@", "/a'b\"c|d",
                                  "/a?b?c", "/caf%C3%A9", "/v1/models/publishers%2Fx:generate"])
async def test_no_part_of_a_path_is_rewritten(client, server, path):
    """A rule judged this path; a normalised one would be another."""
    sending = client.start(server.url(path))
    peer = await server.accept()
    assert (await peer.request()).line == f"POST {path} HTTP/1.1"
    await peer.send(OK)
    (await sending).abort()


@pytest.mark.parametrize(("method", "length"), [("GET", None), ("HEAD", None), ("POST", "0"), ("PUT", "0"), ("DELETE", "0")])
async def test_a_request_without_a_body_says_a_length_only_where_one_is_expected(client, server, method, length):
    """RFC 9110, section 8.6: a server may refuse a POST that says none."""
    sending = client.start(server.url(), method=method)
    peer = await server.accept()
    received = await peer.request()
    assert received.headers.get("content-length") == length
    await peer.send(b"HTTP/1.1 204 OK\r\n\r\n")
    (await sending).abort()


async def test_a_host_header_of_the_adapter_stands(client, server):
    """For an upstream behind an address that is not its name."""
    sending = client.start(server.url(), headers={"host": "models.internal"})
    peer = await server.accept()
    received = await peer.request()
    assert received.headers["host"] == "models.internal"
    await peer.send(OK)
    (await sending).abort()


async def test_an_ipv6_address_is_reached_and_named_in_brackets(client, six_server):
    sending = client.start(six_server.url("/six", host="[::1]"))
    peer = await six_server.accept()
    received = await peer.request()
    assert received.headers["host"] == f"[::1]:{six_server.port}"
    await peer.send(OK)
    (await sending).abort()


async def test_a_header_value_beyond_ascii_travels_as_utf_8(client, server):
    sending = client.start(server.url(), headers={"x-title": "Käse ✓"})
    peer = await server.accept()
    assert (await peer.request()).headers["x-title"] == "Käse ✓"
    await peer.send(OK)
    (await sending).abort()


@pytest.mark.parametrize("headers", [
    {"x-a": "SECRET\r\nx-b: 2"}, {"x-a": "SECRET\nx-b: 2"}, {"x-a": "SECRET\rx"}, {"x-a": "SECRET\0"}, {"x-a": "SECRET\x7f"},
    {"x-a": "SECRET\r\n\r\nGET /evil HTTP/1.1\r\n"}, {"x-a": "SECRET\ud800"}, {"x a": "SECRET"}, {"x-a:": "SECRET"},
    {"x-a: 1\r\nx-b": "SECRET"}, {"": "SECRET"}, {"X-A": "SECRET"}, {"x-ä": "SECRET"}, {"content-length": "5"},
    {"transfer-encoding": "chunked"}, {"connection": "close"}, {"accept-encoding": "gzip"}, {"expect": "100-continue"},
    {"content-length: 5\r\nx-b": "SECRET"}])
async def test_what_would_break_out_of_a_header_is_refused_before_anything_is_sent(client, server, headers):
    """A line break in a value starts another header or another request on a connection that others share."""
    with pytest.raises(AttemptFailed) as failure:
        await client.send(server.url(), headers=headers)
    assert (failure.value.cause, failure.value.retryable) == ("malformed", False)
    assert "SECRET" not in failure.value.message, "the value may be a credential"
    assert not server.peers


@pytest.mark.parametrize("path", ["/a b", "/a\r\nx: y", "/a\n", "/a\t", "/ä", "/a#b", "/a\0", "/a\x7f"])
async def test_a_path_that_would_break_the_request_line_is_refused(client, server, path):
    with pytest.raises(AttemptFailed) as failure:
        await client.send(server.url(path))
    assert (failure.value.cause, failure.value.retryable) == ("malformed", False)
    assert not server.peers


@pytest.mark.parametrize("url", ["", "127.0.0.1/", "ftp://127.0.0.1/", "http:///path", "http://user:pw@127.0.0.1/", "http://a b/",
                                 "http://127.0.0.1:0/", "http://127.0.0.1:70000/", "http://127.0.0.1:x/", "http://bücher.example/",
                                 "http://127.0.0.1?x=/1", "http://[::1/", "http://h\\@evil/", "http://h\r\n/"])
async def test_a_url_that_is_not_plainly_one_is_refused(client, url):
    with pytest.raises(AttemptFailed) as failure:
        await client.send(url)
    assert (failure.value.cause, failure.value.retryable) == ("malformed", False)
    assert "pw" not in failure.value.message


@pytest.mark.parametrize("method", ["", "post", "GET /x HTTP/1.1\r\nx: y\r\n\r\nGET", "GE T"])
async def test_a_method_that_is_no_word_is_refused(client, server, method):
    with pytest.raises(AttemptFailed) as failure:
        await client.send(server.url(), method=method)
    assert failure.value.cause == "malformed"
    assert not server.peers


async def test_cookies_are_not_kept(client, server):
    """One caller's session at a provider is not another's."""
    answer, peer = await client.meet(server, b"HTTP/1.1 200 OK\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n")
    assert await client.body(answer) == b""
    answer.release()
    sending = client.start(server.url())
    assert "cookie" not in (await peer.request()).headers
    await peer.send(OK)
    (await sending).abort()


async def test_a_redirect_is_an_answer_and_is_not_followed(client, server):
    """It would carry the provider's key to wherever the answer points."""
    answer, _ = await client.meet(server, b"HTTP/1.1 307 T\r\nlocation: /else\r\ncontent-length: 0\r\n\r\n")
    assert (answer.status, answer.headers["location"]) == (307, "/else")
    answer.release()
    assert len(server.peers) == 1


async def test_a_large_body_arrives_whole(client, server):
    body = bytes(range(256)) * 4096 * 8
    sending = client.start(server.url(), body=body)
    peer = await server.accept()
    received = await peer.request()
    assert received.body == body
    await peer.send(OK)
    answer = await sending
    assert await client.body(answer) == b"ok"
    answer.release()
    (await client.again(server, peer, OK)).abort()


async def test_an_answer_may_begin_while_the_request_is_still_being_written(client, server):
    """The rest is still sent: the provider may want it."""
    body = b"x" * 8_000_000
    sending = client.start(server.url(), body=body)
    peer = await server.accept()
    received = await peer.head()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
    answer = await sending
    assert await answer.chunk(timeout_s=9) == b"ab"
    assert await peer.reader.readexactly(int(received.headers["content-length"])) == body
    await peer.send(b"cd")
    assert await client.body(answer) == b"cd"
    answer.release()


async def test_a_connection_whose_request_was_not_wholly_written_is_not_used_again(client, server):
    """The next request would be read as the rest of this body."""
    sending = client.start(server.url(), body=b"x" * 30_000_000)
    peer = await server.accept()
    await peer.head()
    await peer.send(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno")
    answer = await sending
    assert (answer.status, await client.body(answer)) == (413, b"no")
    answer.release()
    await peer.gone()
    other, _ = await client.meet(server, OK)
    other.abort()
