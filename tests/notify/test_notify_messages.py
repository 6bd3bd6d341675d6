"""What people are told: enough to know which call waits, nothing of what it does, and nobody's words can become anything but words."""

import base64
import hashlib
import hmac
import json
import unicodedata
from email import message_from_bytes
from email.policy import default
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.approval import Demand, Stage, State, Vote, Voter
from gateway.core.decision import Approval
from gateway.notify.mail import message
from gateway.notify.messages import LONGEST_NAME, body_of, lines, notice_of, shown
from gateway.notify.notices import Notices
from gateway.notify.posts import slack, webhook

NOW_NS = 1_790_000_000_000_000_000
INJECTIONS = [
    "Subject: forged", "pay\r\nBcc: all@example.com", "pay\nX-Evil: 1", "pay\r\n\r\n<h1>Approve here</h1>", "pay\x00\x08\x1b[31m", "pay\u2028now",
    "pay\u202egnp.exe", "pay\u2066hidden\u2069", "<!channel> <https://evil.example|Approve>", "&lt;b&gt;", "*bold* _it_ ~no~ `code` ```pre```",
    "@channel @here @all", "[Approve](https://evil.example)", "https://evil.example/approve", "=?utf-8?q?Bcc=3A_all?=", "\ud800", "é" * 500,
    "zero\u200bwidth\ufeff", "\N{LATIN SMALL LETTER A}" + "\N{COMBINING ACUTE ACCENT}" * 400, "\u200b", "",
]
FIELDS = ("tool", "route", "rule", "message", "principal_name", "principal", "team", "on_behalf_of")


def mail_of(notice: Any, channel: Any) -> Any:
    return message_from_bytes(bytes(message(notice, channel.to, NOW_NS)), policy=default)


def test_a_notice_says_what_waits_and_nothing_of_what_it_does(ticket, hook):
    made = notice_of(ticket(shown={"arguments": {"iban": "DE-SECRET"}}, body=b'{"iban":"DE-SECRET"}', on_behalf_of="ann@example.com"), "opened", hook(), NOW_NS)
    assert dict(made.body) == {
        "type": "approval.opened", "timestamp": "2026-09-21T14:13:20Z", "at_ns": NOW_NS, "headline": "Approval wanted",
        "about": "bank.pay for payroll", "link": "https://gate.example/-/admin#/approvals/apr_01",
        "fields": {"approval": "apr_01", "state": "pending", "kind": "tool", "tool": "bank.pay", "route": "bank.pay", "rule": "pay-big",
                   "message": "Payments above 1,000 wait for two people.", "principal": "payroll", "team": "finance",
                   "on_behalf_of": "ann@example.com", "expires_at": "2026-09-21T15:13:20Z", "digest": "sha256:abababababab"}}
    assert (made.channel, made.kind, made.ticket, made.due_ns, made.attempts) == ("ops", "opened", "apr_01", NOW_NS, 0)


@pytest.mark.parametrize(("kind", "state", "headline"), [
    ("opened", State.PENDING, "Approval wanted"), ("reminder", State.PENDING, "Approval still wanted"),
    ("escalated", State.PENDING, "Approval wanted, as nobody decided in time"), ("decided", State.APPROVED, "Approved"),
    ("decided", State.DENIED, "Denied"), ("decided", State.WITHDRAWN, "Withdrawn"), ("decided", State.PENDING, "Decided"),
    ("expired", State.EXPIRED, "Approval expired"), ("unknown", State.UNKNOWN, "Nobody knows what came of it")])
def test_the_headline_is_of_the_event(ticket, kind, state, headline):
    assert body_of(ticket(state=state), kind, NOW_NS, "https://x")["headline"] == headline


def test_the_id_is_the_same_whoever_makes_the_notice_and_another_for_whatever_else_is_told(ticket, hook):
    first = notice_of(ticket(), "opened", hook(), NOW_NS).id
    assert notice_of(ticket(), "opened", hook("https://other.example"), NOW_NS + 5).id == first
    vote = Vote(Voter("ann"), "approve", "d", 1)
    others = [(ticket(), "reminder", hook()), (ticket(), "opened", hook(name="two")), (ticket(id="apr_02"), "opened", hook()),
              (ticket(fence=1), "opened", hook()), (ticket(state=State.APPROVED), "opened", hook()), (ticket(votes=(vote,)), "opened", hook()),
              (ticket(expires_ns=5), "opened", hook())]
    assert len({first, *(notice_of(*each, NOW_NS).id for each in others)}) == 1 + len(others)


@pytest.mark.parametrize("words", INJECTIONS)
@pytest.mark.parametrize("field", FIELDS)
def test_nobodys_words_break_out_of_their_line(ticket, hook, chat, mailbox, field, words):
    written = ticket(**{"principal_name": "", field: words})
    told = notice_of(written, "opened", hook(), NOW_NS).body
    assert all(value.isprintable() for value in told["fields"].values())
    text = json.loads(slack(notice_of(written, "opened", chat(), NOW_NS), chat().to).body)["text"]
    head, *said, link = text.split("\n")
    assert (head, link) == ("*Approval wanted*", "<https://gate.example/-/admin#/approvals/apr_01|Open the page>")
    assert len(said) == len(lines(told))
    for line in said:
        label, _, value = line.partition(": ")
        assert label.replace(" ", "").isalpha()
        assert value[0] == value[-1] == "`"
        assert not set("<>`") & set(value[1:-1])
    mail = mail_of(notice_of(written, "opened", mailbox(), NOW_NS), mailbox())
    assert sorted(mail.keys()) == sorted(["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Content-Type", "Content-Transfer-Encoding",
                                          "MIME-Version"])
    assert (mail["To"], mail["From"], mail.get_content_type()) == ("ops@example.com", "gate@example.com", "text/plain")
    assert mail["Subject"].lstrip().startswith("[lockgate] Approval wanted: ")
    assert len(mail.get_content().splitlines()) == 5 + len(lines(told))
    assert "://evil" not in mail.get_content()


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec=None), max_size=400), st.integers(2, 50))
def test_shown_words_are_one_bounded_printable_line(text, limit):
    told = shown(text, limit)
    assert len(told) <= limit
    assert told.isprintable()
    assert not any(unicodedata.category(each) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for each in told)
    assert (len(text) > limit) == told.endswith("…") or "…" in text


def test_long_words_are_cut(ticket):
    told = body_of(ticket(tool="t" * 5000, message="m" * 5000), "opened", NOW_NS, "https://x")["fields"]
    assert told["tool"] == "t" * (LONGEST_NAME - 1) + "…"
    assert len(told["message"]) == 300


def test_an_id_is_a_part_of_the_link_and_no_more(ticket):
    assert body_of(ticket(id="../x?a=1#b"), "opened", NOW_NS, "https://x")["link"] == "https://x/-/admin#/approvals/..%2Fx%3Fa%3D1%23b"


def test_a_webhook_is_signed_over_its_id_its_time_and_its_body(ticket, hook):
    made = notice_of(ticket(), "opened", hook(), NOW_NS)
    request = webhook(made, hook().to, NOW_NS + 7 * 10**9)
    headers = request.headers
    assert (headers["webhook-id"], headers["webhook-timestamp"], headers["content-type"]) == (made.id, "1790000007", "application/json")
    expected = hmac.new(hook().to.key, f"{made.id}.1790000007.".encode() + request.body, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(expected).decode()}"
    assert webhook(made, hook().to, NOW_NS + 99 * 10**9).body == request.body
    assert json.loads(request.body) == {
        "type": "approval.opened", "timestamp": "2026-09-21T14:13:20Z",
        "data": {**made.body["fields"], "text": "Approval wanted: bank.pay for payroll", "link": made.body["link"]}}


def test_mail_has_one_id_however_often_it_is_sent_and_is_answered_by_no_machine(ticket, mailbox):
    made = notice_of(ticket(), "opened", mailbox(), NOW_NS)
    first, again = mail_of(made, mailbox()), message_from_bytes(bytes(message(made, mailbox().to, NOW_NS + 10**12)), policy=default)
    assert first["Message-ID"] == again["Message-ID"] == f"<{made.id}@example.com>"
    assert first["Auto-Submitted"] == "auto-generated"
    assert first["Date"].datetime.timestamp() == NOW_NS // 10**9
    assert "https://gate.example/-/admin#/approvals/apr_01" in first.get_content()


def rule(name: str, remind_s: float | None) -> Any:
    return SimpleNamespace(id=name, action=Approval(name, Demand(name, (Stage(),)), remind_s=remind_s))


def told(notices: Any) -> list[tuple[str, str, int]]:
    return [(each.channel, each.kind, (each.due_ns - NOW_NS) // 10**9) for each in notices]


def test_the_channels_of_the_ticket_are_told_what_they_want_to_hear(ticket, hook, chat, world):
    notices = Notices(lambda: world(hook(), chat(name="chat", events=frozenset({"decided"}))))
    assert told(notices.of(ticket(), "opened", NOW_NS)) == [("ops", "opened", 0)]
    assert told(notices.of(ticket(state=State.DENIED), "decided", NOW_NS)) == [("ops", "decided", 0), ("chat", "decided", 0)]
    assert told(notices.of(ticket(notify=("chat", "gone")), "decided", NOW_NS)) == [("chat", "decided", 0)]
    assert notices.of(ticket(notify=()), "decided", NOW_NS) == ()


@pytest.mark.parametrize(("kind", "rules", "expected"), [
    ("opened", [rule("pay-big", 600.0)], [("ops", "opened", 0), ("ops", "reminder", 600)]),
    ("escalated", [rule("pay-big", 600.0)], [("ops", "escalated", 0), ("ops", "reminder", 600)]),
    ("opened", [rule("pay-big", None)], [("ops", "opened", 0)]), ("opened", [rule("other", 600.0)], [("ops", "opened", 0)]),
    ("opened", [SimpleNamespace(id="pay-big", action=None)], [("ops", "opened", 0)]),
    ("opened", [rule("pay-big", 3600.0)], [("ops", "opened", 0)]),  # by then it has expired
    ("decided", [rule("pay-big", 600.0)], [("ops", "decided", 0)])])
def test_people_are_reminded_while_there_is_something_to_decide(ticket, hook, world, kind, rules, expected):
    assert told(Notices(lambda: world(hook(), rules=rules)).of(ticket(), kind, NOW_NS)) == expected


def test_nobody_is_asked_about_an_end_that_can_be_found_out_before_it_could_not(ticket, hook, world):
    lost = ticket(state=State.UNKNOWN)
    by_itself = Notices(lambda: world(hook(), tools={"bank.pay": SimpleNamespace(verify=object())}))
    assert by_itself.of(lost, "unknown", NOW_NS) == ()
    by_people = Notices(lambda: world(hook(), tools={"bank.pay": SimpleNamespace(verify=None)}))
    assert by_people.of(lost, "unknown", NOW_NS) == by_itself.unsolved(lost, NOW_NS) != ()
