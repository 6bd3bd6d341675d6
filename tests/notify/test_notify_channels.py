"""What is wrong with a channel is found at load, with its place; and nothing that is secret about one is ever shown."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.config import Config
from gateway.deployment import read_deployment
from gateway.errors import ConfigError
from gateway.notify.channels import Mailbox, Slack, Webhook, page_of
from gateway.snapshot import Snapshot, compile_snapshot

TOKEN = "T024BE7LD-B0HJ3KQ9Z-xyzzy"
ENVIRON = {
    "KEY": "a signing key of some length", "CODED": f"whsec_{base64.b64encode(b'k' * 24).decode()}", "BAD": "whsec_!!", "SHORT": "whsec_aGk=",
    "SLACK": f"https://hooks.chat.example/services/{TOKEN}?thread=1", "NONE": f"hooks.chat.example/{TOKEN}", "HERE": f"http://127.0.0.1/{TOKEN}",
    "PASSWORD": "correct horse battery", "TRACE": "a trace header's value"}
HOOK = '[notify.hook]\nkind = "webhook"\nurl = "https://hooks.example/in"\nsecret = "env:KEY"\n'
CHAT = '[notify.chat]\nkind = "slack"\nurl_from = "env:SLACK"\n'
MAIL = '[notify.mail]\nkind = "email"\nhost = "mail.example"\nsender = "gate@example.com"\nto = ["ops@example.com", "b@example.com"]\n'
ASKS = '[[rule]]\nid = "ask"\nphase = "request"\neffect = "require_approval"\n[rule.approval]\nnotify = ["hook", "hok"]\n'

Compile = Callable[..., Snapshot]


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    def compile_it(config: str, policies: str = "") -> Snapshot:
        for name, text in (("config.toml", "[auth]\nrequired = false\n" + config), ("routes/r.toml", ""), ("policies/p.toml", policies)):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return compile_snapshot(read_deployment(tmp_path / "config.toml"), ENVIRON)
    return compile_it


def problems(compiled: Compile, config: str, policies: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compiled(config, policies)
    return [str(problem) for problem in caught.value.problems]


def test_channels_are_compiled_with_their_secrets_resolved(compiled):
    made = compiled(HOOK + 'headers = { X-Trace = "env:TRACE" }\nevents = ["opened"]\n' + CHAT + MAIL + '[login]\npublic_url = "https://gate.example/"\n')
    hook, chat, mail = (made.channels[name] for name in ("hook", "chat", "mail"))
    assert isinstance(hook.to, Webhook)
    assert (hook.to.key, dict(hook.to.headers), hook.events, hook.hidden) == (
        ENVIRON["KEY"].encode(), {"x-trace": "a trace header's value"}, {"opened"}, False)
    assert isinstance(chat.to, Slack)
    assert (chat.to.url.reveal(), chat.hidden) == (ENVIRON["SLACK"], True)
    assert isinstance(mail.to, Mailbox)
    assert (mail.to.to, mail.to.tls, mail.to.port, mail.to.password) == (("ops@example.com", "b@example.com"), "starttls", 587, None)
    assert {channel.page for channel in made.channels.values()} == {"https://gate.example"}
    assert {"opened", "unknown"} < mail.events
    assert "decided" not in mail.events


def test_a_key_in_the_standard_form_is_the_bytes_behind_it(compiled):
    to: Any = compiled(HOOK.replace("env:KEY", "env:CODED")).channels["hook"].to
    assert to.key == b"k" * 24


def test_what_is_secret_is_known_to_the_scrubber_and_in_no_repr(compiled):
    made = compiled(HOOK + CHAT + MAIL + 'username = "gate"\npassword = "env:PASSWORD"\n')
    secrets = {secret.reveal() for secret in made.secrets}
    assert {ENVIRON["KEY"], ENVIRON["SLACK"], ENVIRON["PASSWORD"]} <= secrets
    shown = repr(dict(made.channels))
    for value in (ENVIRON["KEY"], TOKEN, ENVIRON["PASSWORD"]):
        assert value not in shown


@pytest.mark.parametrize(("config", "told"), [
    (HOOK.replace("env:KEY", "env:BAD"), ["config.toml:6:notify.hook.secret: what stands behind `whsec_` is not base64"]),
    (HOOK.replace("env:KEY", "env:SHORT"), ["config.toml:6:notify.hook.secret: the secret has 2 bytes, and can be guessed"]),
    (HOOK.replace("env:KEY", "env:GONE"), ["config.toml:6:notify.hook.secret: the environment variable GONE is not set"]),
    (HOOK + 'headers = { Webhook-Id = "mine" }\n', ["config.toml:7:notify.hook.headers: `webhook-id` is the gateway's own header"]),
    (HOOK + 'headers = { Host = "mine" }\n', ["config.toml:7:notify.hook.headers.Host: this header is the transport's own"]),
    (HOOK.replace("hooks.example", "10.0.0.7"), ["config.toml:5:notify.hook.url: 10.0.0.7 is not a public address"]),
    (CHAT.replace("SLACK", "NONE"), ["config.toml:5:notify.chat.url_from: leads to no URL that can be posted to"]),
    (CHAT.replace("SLACK", "HERE"), ["config.toml:5:notify.chat.url_from: its host is not a public address"]),
    (CHAT.replace("SLACK", "GONE"), ["config.toml:5:notify.chat.url_from: the environment variable GONE is not set"]),
    (MAIL.replace("mail.example", "localhost"), ["config.toml:5:notify.mail.host: localhost is not a public address"]),
    (MAIL + 'username = "gate"\n', ["config.toml:8:notify.mail.username: `username` and `password` belong together"]),
    (MAIL + 'username = "gate"\npassword = "env:GONE"\n', ["config.toml:9:notify.mail.password: the environment variable GONE is not set"]),
    (MAIL + 'username = "gate"\npassword = "env:PASSWORD"\ntls = "none"\n',
     ["config.toml:10:notify.mail.tls: the password would be sent where everybody can read it"]),
])
def test_what_is_wrong_is_told_with_its_place_and_without_the_secret(compiled, config, told):
    found = problems(compiled, config)
    assert len(found) == len(told)
    for problem, beginning in zip(found, told, strict=True):
        assert problem.startswith(beginning)
        assert TOKEN not in problem


@pytest.mark.parametrize("address", [
    "ops", "@example.com", "ops@", "a@example.com, b@example.com", "a@example.com\\nBcc: all@example.com", "Ops <ops@example.com>", "ö@example.com",
    "a b@example.com", "a@exa mple.com", "a@b@example.com", "<a@example.com>"])
def test_an_address_that_could_be_more_than_one_plain_address_is_refused(compiled, address):
    for config in (MAIL.replace("gate@example.com", address), MAIL.replace("b@example.com", address)):
        (found,) = problems(compiled, config)
        assert "is no mail address" in found


def test_a_rule_that_names_a_channel_that_is_not_there_is_wrong(compiled):
    (found,) = problems(compiled, HOOK, ASKS)
    assert found.startswith("policies/p.toml:6:rule[0].approval.notify[1]: there is no channel 'hok'")
    assert 'did you mean "hook"?' in found


@pytest.mark.parametrize(("login", "server", "page"), [
    ({"public_url": "https://gate.example/lock/"}, {}, "https://gate.example/lock"), ({}, {"port": 8081}, "http://127.0.0.1:8081"),
    ({}, {"host": "::1", "port": 8080}, "http://[::1]:8080")])
def test_links_lead_to_the_public_address_or_to_where_the_gateway_listens(login, server, page):
    assert page_of(Config.model_validate({"login": login, "server": server})) == page
