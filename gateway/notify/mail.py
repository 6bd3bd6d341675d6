"""Notices as mail, and the way to the SMTP server. Its library waits for the network, so it does that in threads of its own."""

import asyncio
import smtplib
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from functools import cached_property
from typing import Final

from gateway.notify.channels import Mailbox
from gateway.notify.messages import lines
from gateway.notify.undelivered import UndeliveredError
from gateway.store.approvals_protocol import Notice
from gateway.upstream.addresses import AddressInfo, public

_THREADS: Final = 8
_STEP_S: Final = 10.0  # for one word from the server
_LONGEST_REASON: Final = 300


def message(notice: Notice, to: Mailbox, now_ns: int) -> EmailMessage:
    """A notice as plain text. Its `Message-ID` is the same however often it is sent, so that mail programs show it once."""
    told = notice.body
    mail = EmailMessage(policy=SMTP)
    mail["From"], mail["To"] = to.sender, ", ".join(to.to)
    mail["Subject"] = f"[lockgate] {told['headline']}: {told['about']}"
    mail["Date"] = datetime.fromtimestamp(now_ns // 10**9, UTC)
    mail["Message-ID"] = f"<{notice.id}@{_domain(to)}>"
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday notice answers it
    said = "\n".join(f"{label}: {_unlinked(value)}" for label, value in lines(told))
    where = "The whole action, and the place to decide (the link itself decides nothing):"
    mail.set_content(f"{told['headline']}.\n\n{said}\n\n{where}\n{told['link']}\n")
    return mail


class Mailer:
    """Hands mail to SMTP servers. `tls` is for private certificate authorities."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._given_tls = tls
        self._threads = ThreadPoolExecutor(_THREADS, "lockgate-mail")

    async def send(self, mail: EmailMessage, to: Mailbox) -> int:
        """Give the mail to its server: how many of its receivers it would not take, of several. Raises `UndeliveredError`."""
        line = _Line()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._send, mail, to, line)
        finally:
            line.cut()  # whoever stops waiting ends the thread's wait, too

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or _tls_context()  # with the first mail: certificates take a while to read, and most gateways send none

    def close(self) -> None:
        """Begin nothing more. A thread that still waits for its server ends with that wait."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _send(self, mail: EmailMessage, to: Mailbox, line: "_Line") -> int:
        try:
            with closing(_Connection(to, self._tls, line)) as server:
                if to.tls == "starttls":
                    server.starttls(context=self._tls)
                    line.sock = server.sock
                if to.password is not None:
                    server.login(to.username, to.password.reveal())
                refused = server.send_message(mail, to.sender, to.to)
                with suppress(smtplib.SMTPException, OSError):  # it has the mail, however it says goodbye
                    server.quit()
                return len(refused)
        except smtplib.SMTPResponseException as error:
            told = f"the mail server says {error.smtp_code} {_words(error.smtp_error)}"
            raise UndeliveredError(f"smtp:{error.smtp_code}", told) from error
        except smtplib.SMTPRecipientsRefused as error:
            code, said = next(iter(error.recipients.values()))
            raise UndeliveredError(f"smtp:{code}", f"the mail server takes none of the receivers: {code} {_words(said)}") from error
        except ssl.SSLError as error:
            raise UndeliveredError("tls", f"no TLS with the mail server: {_words(error.reason or str(error))}") from error
        except (OSError, smtplib.SMTPException) as error:  # the first is what the second is made of
            cause = "smtp" if isinstance(error, smtplib.SMTPException) else "connect"
            raise UndeliveredError(cause, f"the mail server cannot be used: {_words(str(error) or type(error).__name__)}") from error


class _Line:
    """The socket that a thread waits on, so that somebody else can end the wait."""

    __slots__ = ("sock",)

    def __init__(self) -> None:
        self.sock: socket.socket | None = None

    def cut(self) -> None:
        """End the conversation, if there is still one."""
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


class _Connection(smtplib.SMTP):
    """A connection to one of the addresses of a server that may be reached, as checked."""

    def __init__(self, to: Mailbox, tls: ssl.SSLContext, line: _Line) -> None:
        self._to = to
        self._context = tls
        self._line = line
        super().__init__(to.host, to.port, local_hostname=_domain(to), timeout=_STEP_S)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        """Where smtplib has its socket from, as its own subclass for TLS does it."""
        found: list[AddressInfo] = list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        if not self._to.private:
            found = public(found)
        if not found:
            raise OSError("it has no public address, and others may not be reached from here")
        plain = _connected(found, timeout)
        try:
            self._line.sock = self._context.wrap_socket(plain, server_hostname=host) if self._to.tls == "tls" else plain
        except BaseException:
            plain.close()
            raise
        return self._line.sock


def _connected(found: list[AddressInfo], timeout_s: float) -> socket.socket:
    """A connection to the first address that takes one. Raises the last one's `OSError`."""
    failure = OSError("it has no address")
    for *_, address in found:
        try:
            return socket.create_connection(address[:2], timeout_s)
        except OSError as error:
            failure = error
    raise failure


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _domain(to: Mailbox) -> str:
    """The sender's: what we are to those whom mail comes to."""
    return to.sender.rpartition("@")[2]


def _unlinked(text: str) -> str:
    """Others' words without what mail programs make a link of."""
    return text.replace("://", ": //")


def _words(said: bytes | str) -> str:
    """A server's words on one line."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return " ".join("".join([each if each.isprintable() else " " for each in text]).split())[:_LONGEST_REASON]
