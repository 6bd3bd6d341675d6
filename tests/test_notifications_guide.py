"""The guide to notifications holds: its settings compile, its payload is what is sent, and its check of a signature works."""

import json
import re
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from gateway.core.approval import Demand, Stage, State, Ticket
from gateway.deployment import read_deployment
from gateway.notify.channels import Channel, Webhook
from gateway.notify.messages import LABELS, notice_of
from gateway.notify.posts import webhook
from gateway.people_config import NotifyConfig
from gateway.secret import Secret
from gateway.snapshot import Snapshot, compile_snapshot

TEXT = (Path(__file__).parents[1] / "docs" / "notifications.md").read_text(encoding="utf-8")
NOW_NS = 1_790_000_000_000_000_000
CODED = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
PLAIN = "a secret of some length"


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[[str], Snapshot]:
    """The settings of the guide, with this secret of its webhook."""
    def compile_it(secret: str) -> Snapshot:
        for folder in ("routes", "policies", "secrets"):
            (tmp_path / folder).mkdir()
        (tmp_path / "config.toml").write_text(f"[auth]\nrequired = false\n{block('toml')}")
        (tmp_path / "secrets/ops-webhook").write_text(f"{secret}\n")
        (tmp_path / "secrets/smtp").write_text("a password\n")
        return compile_snapshot(read_deployment(tmp_path / "config.toml"), {"CHAT_WEBHOOK": "https://hooks.chat.example/services/T0/B0/x"})
    return compile_it


def shown() -> Ticket:
    """The approval of the example."""
    data = json.loads(block("json"))["data"]
    return Ticket(
        id=data["approval"], kind="tool", mode="release", state=State.PENDING, digest=data["digest"] + "0" * 52, presented="", principal="key_1",
        call_id="call_1", rule=data["rule"], message=data["message"], demands=(Demand(data["rule"], (Stage(),)),), shown={}, body=b"",
        origin={}, shape="", created_ns=NOW_NS, expires_ns=NOW_NS + 86_400 * 10**9, principal_name=data["principal"], team=data["team"],
        tool=data["tool"], route=data["route"])


def sent(channel: Channel, now_ns: int = NOW_NS) -> Any:
    assert isinstance(channel.to, Webhook)
    return webhook(notice_of(shown(), "opened", channel, NOW_NS), channel.to, now_ns)


def test_the_settings_compile_and_the_payload_is_what_is_sent(compiled):
    channels = compiled(CODED).channels
    assert list(channels) == ["ops", "chat", "mail"]
    assert json.loads(sent(channels["ops"]).body) == json.loads(block("json"))


@pytest.mark.parametrize("secret", [CODED, PLAIN])
def test_the_check_of_a_signature_takes_what_is_genuine_and_nothing_else(compiled, secret):
    known: dict[str, Any] = {}
    exec(block("python"), known)  # noqa: S102 - the guide's own code is what is looked at
    genuine = known["genuine"]
    request = sent(compiled(secret).channels["ops"], time.time_ns())
    headers = dict(request.headers)
    assert genuine(headers, request.body, secret)
    assert genuine({**headers, "webhook-signature": f"v1,AAAA {headers['webhook-signature']}"}, request.body, secret)
    assert not genuine(headers, request.body + b" ", secret)
    assert not genuine({**headers, "webhook-id": "ntc_other"}, request.body, secret)
    assert not genuine(headers, request.body, "another secret of some length")
    assert not genuine(dict(sent(Channel("ops", frozenset(), Webhook(Secret("https://x.example"), {}, private=False, key=b"k" * 32), "")).headers),
                       request.body, secret)


def test_every_event_and_every_field_is_described():
    events = get_args(get_args(NotifyConfig.model_fields["events"].annotation)[0])
    assert re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE) == list(events)
    fields = set(json.loads(block("json"))["data"])
    assert set(LABELS) <= fields
    assert tomllib.loads(block("toml"))["notify"].keys() == {"ops", "chat", "mail"}
