"""What is sent to a receiver of HTTP: a signed webhook (standardwebhooks.com), or a message of Slack's form. Pure."""

import base64
import hmac
from typing import Final

from gateway import __version__
from gateway.call import JsonObject
from gateway.notify.channels import Slack, Webhook
from gateway.notify.messages import lines
from gateway.store.approvals_protocol import Notice
from gateway.upstream.protocol import HttpRequest
from gateway.wire.strict_json import dumps

_AGENT: Final = f"lockgate/{__version__}"
_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "`": "'"})


def webhook(notice: Notice, to: Webhook, now_ns: int) -> HttpRequest:
    """A notice as a webhook. Its id is the same however often it is sent, so that a receiver can tell what it has had."""
    body = dumps(payload(notice.body))
    stamp = str(now_ns // 10**9)
    signed = hmac.digest(to.key, b".".join((notice.id.encode(), stamp.encode(), body)), "sha256")
    ours = {"webhook-id": notice.id, "webhook-timestamp": stamp, "webhook-signature": f"v1,{base64.b64encode(signed).decode()}"}
    return _post(to, body, ours)


def slack(notice: Notice, to: Slack) -> HttpRequest:
    """A notice as a message of Slack's form, which other chats take as well."""
    told = notice.body
    said = [f"{label}: {_code(value)}" for label, value in lines(told)]
    text = "\n".join([f"*{told['headline']}*", *said, f"<{told['link']}|Open the page>"])
    return _post(to, dumps({"text": text, "unfurl_links": False, "unfurl_media": False}), {"webhook-id": notice.id})


def payload(body: JsonObject) -> JsonObject:
    """What a webhook says of a notice."""
    return {"type": body["type"], "timestamp": body["timestamp"],
            "data": {**body["fields"], "text": f"{body['headline']}: {body['about']}", "link": body["link"]}}


def _code(text: str) -> str:
    """Others' words as code: chats read no markup, no mention and no link in it."""
    return f"`{text.translate(_ESCAPES)}`"


def _post(to: Webhook | Slack, body: bytes, ours: dict[str, str]) -> HttpRequest:
    headers = {**to.headers, **ours, "content-type": "application/json", "user-agent": _AGENT}
    return HttpRequest("POST", to.url.reveal(), headers, body, to.private)
