"""The ways out of the house: a notice to whatever its channel's receiver is. One try each; whoever asks tries again."""

import asyncio
from contextlib import suppress
from email.message import EmailMessage
from typing import Final, assert_never

from gateway.clock import Clock
from gateway.errors import AttemptFailed
from gateway.notify.channels import Channel, Mailbox, Slack, Webhook
from gateway.notify.mail import Mailer, message
from gateway.notify.posts import slack, webhook
from gateway.notify.undelivered import UndeliveredError
from gateway.store.approvals_protocol import Notice
from gateway.telemetry import Telemetry
from gateway.upstream.protocol import HttpAnswer, HttpRequest, Transport

_CONNECT_S: Final = 5.0
_HEADERS_S: Final = 15.0
_REST_S: Final = 1.0  # for what comes behind a 2xx; once it has been read, its connection can be used again
_MOST_ANSWER: Final = 64 * 1024


class Senders:
    """Sends notices over HTTP, as models are called, and as mail."""

    def __init__(self, transport: Transport, mailer: Mailer, telemetry: Telemetry, clock: Clock) -> None:
        self._transport = transport
        self._mailer = mailer
        self._telemetry = telemetry
        self._clock = clock

    async def send(self, notice: Notice, channel: Channel) -> None:
        """Deliver a notice. Raises `UndeliveredError`."""
        now_ns = self._clock.now_ns()
        match channel.to:
            case Webhook():
                await self._post(webhook(notice, channel.to, now_ns))
            case Slack():
                await self._post(slack(notice, channel.to))
            case Mailbox():
                await self._mail(message(notice, channel.to, now_ns), channel.to, channel.name)
            case _:
                assert_never(channel.to)

    def close(self) -> None:
        """Begin nothing more."""
        self._mailer.close()

    async def _post(self, request: HttpRequest) -> None:
        """Post it; any 2xx means that it has arrived, whatever else is said."""
        try:
            answer = await self._transport.send(request, connect_s=_CONNECT_S, headers_s=_HEADERS_S)
        except AttemptFailed as failure:
            raise UndeliveredError(failure.cause, failure.message) from failure
        try:
            if not 200 <= answer.status < 300:
                told = "a redirect, which is not followed" if answer.status < 400 else "its receiver does not take it"
                raise UndeliveredError(f"status:{answer.status}", told, _asked_to_wait(answer))
            with suppress(AttemptFailed, TimeoutError):
                async with asyncio.timeout(_REST_S):
                    await answer.read(limit=_MOST_ANSWER, idle_s=_REST_S)
        finally:
            answer.release()

    async def _mail(self, mail: EmailMessage, to: Mailbox, channel: str) -> None:
        refused = await self._mailer.send(mail, to)
        if refused:  # others have it, and would have it twice
            self._telemetry.event("warning", "notice_refused_by_some", channel=channel, refused=refused, receivers=len(to.to))


def _asked_to_wait(answer: HttpAnswer) -> float:
    """The seconds of `Retry-After`; 0 where it says none, or a date."""
    said = answer.headers.get("retry-after", "").strip()
    return float(said) if said.isascii() and said.isdigit() and len(said) <= len("999999") else 0.0
