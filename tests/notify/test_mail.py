"""Mail reaches a real SMTP server: over TLS that is checked, only where it may go, and a server that misbehaves ends no wait but its own."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from gateway.notify.channels import Channel
from gateway.notify.mail import Mailer, message
from gateway.notify.messages import notice_of
from gateway.notify.undelivered import UndeliveredError
from gateway.secret import Secret

DATA = Path(__file__).parents[1] / "upstream" / "data"  # a certificate for localhost, and the authority that signed it
NOW_NS = 1_790_000_000_000_000_000
SOON_S = 20
PASSWORD = "correct horse battery"


@dataclass
class Post:
    """What a server was given."""

    mails: list[Message] = field(default_factory=list)
    receivers: list[list[str]] = field(default_factory=list)
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)
    refuses: frozenset[str] = frozenset()
    answer: str = "250 taken"

    async def handle_RCPT(self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]) -> str:  # noqa: N802
        if address in self.refuses:
            return "550 nobody of that name\x1b[31m here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.original_content, bytes)
        self.mails.append(message_from_bytes(envelope.original_content))
        self.receivers.append(list(envelope.rcpt_tos))
        assert session.host_name == "example.com"
        return self.answer

    def login(self, _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == PASSWORD.encode())


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's, and one of a client that trusts its authority."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(DATA / "localhost.pem", DATA / "localhost.key.pem")
    return server, ssl.create_default_context(cafile=str(DATA / "authority.pem"))


Serve = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Begin to serve; gives the port."""
    async with AsyncExitStack() as stack:
        async def begin(make: Callable[[], asyncio.BaseProtocol], **options: Any) -> int:
            server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0, **options)
            stack.callback(server.close)
            port: int = server.sockets[0].getsockname()[1]
            return port

        yield begin


@pytest.fixture
async def mailer() -> AsyncIterator[Mailer]:
    made = Mailer(contexts()[1])
    yield made
    made.close()


async def send(mailer: Mailer, channel: Channel, ticket: Any) -> int:
    to: Any = channel.to
    mail = message(notice_of(ticket(), "opened", channel, NOW_NS), to, NOW_NS)
    async with asyncio.timeout(SOON_S):
        return await mailer.send(mail, to)


async def failed(mailer: Mailer, channel: Channel, ticket: Any) -> UndeliveredError:
    with pytest.raises(UndeliveredError) as caught:
        await send(mailer, channel, ticket)
    return caught.value


async def test_mail_arrives_with_everybody_it_is_for(serve, mailer, mailbox, ticket):
    post = Post()
    port = await serve(lambda: SMTP(post))
    assert await send(mailer, mailbox(port=port, to=("a@example.com", "b@example.com")), ticket) == 0
    assert post.receivers == [["a@example.com", "b@example.com"]]
    assert (post.mails[0]["To"], post.mails[0]["From"]) == ("a@example.com, b@example.com", "gate@example.com")


@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_a_secured_server_is_logged_in_to_once_its_certificate_is_checked(serve, mailer, mailbox, ticket, tls):
    post, (server, _) = Post(), contexts()
    upgrades = tls == "starttls"
    port = await serve(
        lambda: SMTP(post, tls_context=server if upgrades else None, require_starttls=upgrades, authenticator=post.login,
                     auth_required=upgrades, auth_require_tls=upgrades), **({} if upgrades else {"ssl": server}))
    secured = {"host": "localhost", "port": port, "tls": tls, "username": "gate"}
    assert await send(mailer, mailbox(**secured, password=Secret(PASSWORD)), ticket) == 0
    assert post.logins == [(b"gate", PASSWORD.encode())]
    wrong = await failed(mailer, mailbox(**secured, password=Secret("another password")), ticket)
    assert wrong.cause.startswith("smtp")
    assert "another password" not in wrong.message
    assert len(post.mails) == 1


@pytest.mark.parametrize("tls", ["starttls", "tls"])
async def test_a_certificate_that_nobody_vouches_for_ends_it_before_a_word_is_said(serve, mailbox, ticket, tls):
    post, (server, _) = Post(), contexts()
    port = await serve(lambda: SMTP(post, tls_context=server if tls == "starttls" else None, authenticator=post.login),
                       **({"ssl": server} if tls == "tls" else {}))
    strict = Mailer()  # the system's authorities
    failure = await failed(strict, mailbox(host="localhost", port=port, tls=tls, username="gate", password=Secret(PASSWORD)), ticket)
    strict.close()
    assert failure.cause == "tls"
    assert "CERTIFICATE_VERIFY_FAILED" in failure.message.upper().replace(" ", "_")
    assert (post.mails, post.logins) == ([], [])


async def test_a_certificate_of_another_name_is_refused(serve, mailer, mailbox, ticket):
    post, (server, _) = Post(), contexts()
    port = await serve(lambda: SMTP(post, tls_context=server))
    failure = await failed(mailer, mailbox(host="127.0.0.1", port=port, tls="starttls"), ticket)
    assert failure.cause == "tls"
    assert post.mails == []


async def test_a_server_without_starttls_gets_nothing(serve, mailer, mailbox, ticket):
    """Whoever sits between could take the offer out of its greeting: then nothing goes in the open."""
    post = Post()
    port = await serve(lambda: SMTP(post))
    failure = await failed(mailer, mailbox(host="localhost", port=port, tls="starttls"), ticket)
    assert failure.cause == "smtp"
    assert "STARTTLS" in failure.message
    assert post.mails == []


async def test_an_address_that_is_not_public_is_not_connected_to(serve, mailer, mailbox, ticket):
    post = Post()
    port = await serve(lambda: SMTP(post))
    for host in ("127.0.0.1", "localhost"):
        failure = await failed(mailer, mailbox(host=host, port=port, private=False), ticket)
        assert (failure.cause, "it has no public address" in failure.message) == ("connect", True)
    assert post.mails == []


async def test_receivers_that_some_are_refused_of_have_it_and_all_refused_is_a_failure(serve, mailer, mailbox, ticket):
    post = Post(refuses=frozenset({"gone@example.com"}))
    port = await serve(lambda: SMTP(post))
    assert await send(mailer, mailbox(port=port, to=("a@example.com", "gone@example.com")), ticket) == 1
    assert post.receivers == [["a@example.com"]]
    failure = await failed(mailer, mailbox(port=port, to=("gone@example.com",)), ticket)
    assert (failure.cause, failure.message) == ("smtp:550", "the mail server takes none of the receivers: 550 nobody of that name [31m here")


async def test_what_a_server_answers_is_told_on_one_bounded_line(serve, mailer, mailbox, ticket):
    post = Post(answer="452 too much\x07 " + "x" * 400)
    port = await serve(lambda: SMTP(post))
    failure = await failed(mailer, mailbox(port=port), ticket)
    assert failure.cause == "smtp:452"
    assert failure.message.isprintable()
    assert len(failure.message) < 400


async def test_nobody_there_and_no_such_name_are_failures_to_connect(mailer, mailbox, ticket):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        failure = await failed(mailer, mailbox(port=taken.getsockname()[1]), ticket)
    assert failure.cause == "connect"
    assert (await failed(mailer, mailbox(host="nobody.invalid"), ticket)).cause == "connect"


async def test_a_server_that_says_nothing_is_left_at_its_deadline_and_its_thread_ends(mailer, mailbox, ticket, monkeypatch):
    monkeypatch.setattr("gateway.notify.mail._STEP_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        failure = await failed(mailer, mailbox(port=silent.getsockname()[1]), ticket)
    assert failure.cause == "smtp"
    assert "timed out" in failure.message


class Talks(asyncio.Protocol):
    """Greets for ever, a line at a time, so that no single wait is long."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.task = asyncio.get_running_loop().create_task(self.talk())

    async def talk(self) -> None:
        while not self.transport.is_closing():
            self.transport.write(b"220-still here\r\n")
            await asyncio.sleep(0)

    def connection_lost(self, _error: Exception | None) -> None:
        self.task.cancel()


async def test_a_server_that_never_stops_talking_is_cut_off_with_whoever_waits_for_it(serve, mailer, mailbox, ticket):
    port = await serve(Talks)
    to: Any = mailbox(port=port).to
    mail = message(notice_of(ticket(), "opened", mailbox(), NOW_NS), to, NOW_NS)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await mailer.send(mail, to)
    mailer.close()
    threads = [each for each in threading.enumerate() if each.name.startswith("lockgate-mail")]
    for each in threads:
        await asyncio.to_thread(each.join, SOON_S)
    assert not any(each.is_alive() for each in threads)
