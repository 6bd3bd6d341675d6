"""A guarded request goes to public addresses only: checked after the name is resolved, and connected to exactly as checked."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

import pytest

from gateway.errors import AttemptFailed
from gateway.upstream import addresses
from gateway.upstream.addresses import AddressInfo, is_local_host, is_public, public
from gateway.upstream.protocol import HttpAnswer, HttpRequest, Transport

PUBLIC = ("8.8.8.8", "1.1.1.1", "93.184.216.34", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0", "169.253.255.255", "223.255.255.255",
          "192.0.1.0", "198.17.255.255", "198.20.0.0", "11.0.0.0", "9.255.255.255", "126.255.255.255", "128.0.0.0",
          "2606:4700::1111", "2a00:1450:4001:82a::200e", "2001:4860:4860::8888", "2001:200::", "2003::1")
NOT_PUBLIC = (
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.1", "127.0.0.1", "127.255.255.255",  # noqa: S104 - nothing listens
    "169.254.169.254", "169.254.0.1", "100.64.0.0", "100.100.100.200", "100.127.255.255", "168.63.129.16", "192.0.0.1", "192.0.0.170", "192.0.2.1",
    "198.51.100.7", "203.0.113.9", "192.88.99.1", "198.18.0.0", "198.19.255.255", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fe80::1%eth0", "febf::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "3fff::1", "100::1",
    "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1", "2001:20::1", "64:ff9b:1::a00:1", "5f00::1", "4000::1", "2606:4700::1111%1",
)
# The forms of IPv6 that hold an IPv4 address.
FORMS: Sequence[Callable[[str], str]] = (
    lambda four: f"::ffff:{four}", lambda four: f"::{four}", lambda four: f"::ffff:0:{four}", lambda four: f"64:ff9b::{four}",
    lambda four: "2002:{:02x}{:02x}:{:02x}{:02x}::1".format(*map(int, four.split("."))),
)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_every_other_address_is_not(address):
    assert not is_public(address)


@pytest.mark.parametrize("form", FORMS)
def test_an_ipv6_form_of_an_ipv4_address_is_what_that_one_is(form):
    assert is_public(form("8.8.8.8"))
    for four in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "192.168.1.1", "224.0.0.1", "0.0.0.0"):  # noqa: S104 - nothing listens
        assert not is_public(form(four)), form(four)


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "0x7f.0.0.1", "2130706433", "0177.0.0.1", "1.1.1.1/32", " 1.1.1.1", "[::1]", "1.1.1.1\n", "\u0661.1.1.1"])
def test_what_is_no_address_is_not_public(text):
    assert not is_public(text)


@pytest.mark.parametrize(("host", "local"), [
    ("localhost", True), ("LOCALHOST.", True), ("api.localhost", True), ("127.0.0.1", True), ("[::1]", True), ("::1", True), ("10.0.0.1", True),
    ("fe80::1%25eth0", True), ("169.254.169.254", True), ("8.8.8.8", False), ("[2606:4700::1111]", False), ("api.example.com", False),
    ("localhost.example.com", False), ("10.0.0.1.nip.io", False), ("2130706433", False),
])
def test_a_host_that_is_not_public_as_it_stands_is_known_without_a_resolver(host, local):
    assert is_local_host(host) is local


def info(address: str, port: int = 80, scope: int = 0) -> AddressInfo:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port, 0, scope)
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)


def test_of_several_addresses_the_public_ones_are_left():
    found = [info("10.0.0.1"), info("8.8.8.8"), info("::1"), info("2606:4700::1111"), info("2606:4700::1111", scope=3)]
    assert public(found) == [info("8.8.8.8"), info("2606:4700::1111")]


class FakeResolver:
    """Answers each question with the next of its answers, the last one for ever; `asked` are the names."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[AddressInfo]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [info(address, port) for address in answer]


class Exchange:
    """Requests of one transport, with deadlines that no test meets."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def send(self, url: str, *, private: bool) -> HttpAnswer:
        request = HttpRequest("GET", url, {}, b"", private)
        async with asyncio.timeout(10):
            return await self.transport.send(request, connect_s=9, headers_s=9)

    async def refused(self, url: str) -> AttemptFailed:
        with pytest.raises(AttemptFailed) as caught:
            await self.send(url, private=False)
        return caught.value


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def answered(server, sending: Awaitable[HttpAnswer]) -> bytes:
    task = asyncio.ensure_future(sending)
    peer = await server.accept()
    await peer.request()
    await peer.send(OK)
    answer = await task
    body = await answer.read(limit=100, idle_s=9)
    answer.release()
    return body


def called_public(monkeypatch, *addresses_: str) -> None:
    """Let these addresses of this machine pass for public ones."""
    real = addresses.is_public
    for name in ("gateway.upstream.addresses.is_public", "gateway.upstream.aiohttp_transport.is_public"):
        monkeypatch.setattr(name, lambda address: address in addresses_ or real(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0"])  # noqa: S104 - nothing listens
async def test_this_machine_is_not_reached_in_whatever_way_it_is_written(make, server, host):
    failure = await Exchange(make()).refused(f"http://{host}:{server.port}/")
    assert failure.cause == "connect"
    assert server.peers == []


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "100.64.0.1"])
async def test_a_name_that_leads_to_other_than_public_addresses_is_refused_without_another_try(make, address):
    resolve = FakeResolver([address])
    failure = await Exchange(make(resolve=resolve)).refused("http://tools.example/")
    assert (failure.cause, failure.retryable) == ("connect", False)
    assert "has no public address" in failure.message
    assert "tools.example" in failure.message
    assert address not in failure.message  # a caller is not told what stands in a private network
    assert resolve.asked == ["tools.example"]


async def test_of_the_addresses_of_a_name_only_the_public_ones_are_connected_to(make, server, monkeypatch):
    called_public(monkeypatch, "127.0.0.1")
    resolve = FakeResolver(["10.255.255.1", "127.0.0.1", "::1"])
    assert await answered(server, Exchange(make(resolve=resolve)).send(f"http://tools.example:{server.port}/", private=False)) == b"ok"


async def test_an_upstream_that_may_be_private_is_reached_as_before(make, server):
    exchange = Exchange(make(resolve=FakeResolver(["127.0.0.1"])))
    assert await answered(server, exchange.send(f"http://tools.example:{server.port}/", private=True)) == b"ok"
    assert await answered(server, Exchange(make()).send(server.url(), private=True)) == b"ok"


async def test_a_name_that_changes_after_it_was_checked_changes_nothing(make, server, monkeypatch):
    """DNS rebinding: the first answer is public, the next is this machine. One look-up is checked and connected to."""
    called_public(monkeypatch, "127.0.0.2")
    resolve = FakeResolver(["127.0.0.2"], ["127.0.0.1"])
    failure = await Exchange(make(resolve=resolve)).refused(f"http://tools.example:{server.port}/")  # nobody listens on 127.0.0.2
    assert failure.cause == "connect"
    assert "public" not in failure.message
    assert resolve.asked == ["tools.example"]
    assert server.peers == []


async def test_a_new_connection_is_a_new_check(make, server, monkeypatch):
    called_public(monkeypatch, "127.0.0.1")
    resolve = FakeResolver(["127.0.0.1"], ["10.0.0.1"])
    exchange = Exchange(make(resolve=resolve))
    url = f"http://tools.example:{server.port}/"
    assert await answered(server, exchange.send(url, private=False)) == b"ok"
    server.peers[0].close()
    await server.peers[0].gone()
    exchange = Exchange(make(resolve=FakeResolver(["10.0.0.1"])))
    assert "has no public address" in (await exchange.refused(url)).message


async def test_a_connection_of_one_kind_is_never_used_for_the_other(make, server):
    """Else a private upstream that is open for one tool would be open for all."""
    exchange = Exchange(make(resolve=FakeResolver(["127.0.0.1"])))
    url = f"http://tools.example:{server.port}/"
    assert await answered(server, exchange.send(url, private=True)) == b"ok"
    assert "has no public address" in (await exchange.refused(url)).message
    assert len(server.peers) == 1


async def test_a_redirect_to_a_private_address_is_an_answer_and_not_followed(make, server, monkeypatch):
    called_public(monkeypatch, "127.0.0.1")
    sending = asyncio.ensure_future(Exchange(make()).send(server.url(), private=False))
    peer = await server.accept()
    await peer.request()
    await peer.send(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/admin\r\ncontent-length: 0\r\n\r\n")
    answer = await sending
    assert answer.status == 302
    answer.abort()
    assert len(server.peers) == 1
