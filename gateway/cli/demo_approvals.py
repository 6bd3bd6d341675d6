"""The demo's last scene: a payment that a model proposes waits until two people have approved it, and is made once."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final

import click
import orjson

from gateway.cli.demo_stage import READY_S, expect, say
from gateway.cli.remote import RefusedError, Remote
from gateway.secret import Secret

BANK_TOOL: Final = """
[[tool]]
name = "bank.pay"
method = "POST"
url = "{bank}/tools/payments"
effect = "at_most_once"
private = true
[tool.arguments]
required = ["to", "amount"]
[tool.arguments.properties]
to = {{ type = "string" }}
amount = {{ type = "number" }}
"""

BANK_RULES: Final = """
[[rule]]
id = "payments"
phase = "tool_call"
match = { tools = ["bank.pay"] }
effect = "allow"

[[rule]]
id = "large-payments"
phase = "tool_call"
match = { tools = ["bank.pay"] }
when = "!has(tool.args.amount) || double(tool.args.amount) > 1000.0"
effect = "require_approval"
message = "Payments above 1,000 wait for two people."
approvers = ["role:finance", "role:admin"]
quorum = 2
"""

_PAYMENT: Final = {"to": "ACME", "amount": 2500}
_WAITING: Final = {"to": "Globex", "amount": 9900}
_TOOL: Final = {"type": "function", "function": {"name": "bank.pay", "parameters": {
    "type": "object", "properties": {"to": {"type": "string"}, "amount": {"type": "number"}}, "required": ["to", "amount"]}}}
_LOOK_S: Final = 0.05  # between two looks at what happens elsewhere


@dataclass(frozen=True, slots=True)
class Bank:
    """Who asks for payments, with what, and who decides. `client` is the official one, `people` have API tokens, `bank` is paid."""

    client: Any
    threads: Executor
    url: str
    key: str = field(repr=False)
    people: Mapping[str, str] = field(repr=False)
    bank: str

    def propose(self, payment: Mapping[str, Any]) -> "Future[Any]":
        """Have the model propose a payment; the application waits for its answer as for any other."""
        messages = [{"role": "user", "content": f"call bank.pay {orjson.dumps(payment).decode()}"}]
        ask = self.client.chat.completions.with_raw_response.create
        return self.threads.submit(ask, model="assistant", messages=messages, tools=[_TOOL])

    def person(self, name: str) -> Remote:
        """One of the people at the gateway's endpoints."""
        return Remote(self.url, Secret(self.people[name]))

    def waiting(self, answer: "Future[Any]") -> dict[str, Any]:
        """What waits for people, once something does, as they see it; `answer` is what its caller waits for."""
        ada = self.person("ada")
        until = time.monotonic() + READY_S
        while not (rows := ada.get("/-/approvals")["approvals"]):
            wait([answer], timeout=_LOOK_S)
            expect(not answer.done() and time.monotonic() < until, "the payment waits for people")
        shown: dict[str, Any] = ada.get(f"/-/approvals/{rows[0]['id']}")["approval"]
        return shown

    def vote(self, name: str, shown: Mapping[str, Any]) -> str:
        """One of the people approves what was shown; the state that it has then."""
        body = {"verdict": "approve", "digest": shown["digest"], "comment": "as agreed"}
        state: str = self.person(name).post(f"/-/approvals/{shown['id']}/vote", body)["approval"]["state"]
        return state

    def paid(self) -> list[Any]:
        """What the bank has on record."""
        log = Remote(self.bank.removesuffix("/v1"), Secret("")).get("/sim/log")
        return [entry["body"] for entry in log["requests"] if entry["path"] == "/tools/payments"]


def show_approval(bank: Bank) -> None:
    """A payment waits for two people, whose votes a script casts through the API."""
    answer = bank.propose(_PAYMENT)
    shown = bank.waiting(answer)
    expect(shown["action"]["arguments"] == _PAYMENT and shown["kind"] == "tool_call", "people are shown what the model proposes")
    click.echo(f"  waiting    {shown['summary']}\n             {shown['message']}  approval={shown['id']}")
    expect(bank.vote("ada", shown) == "pending", "one person is not enough")
    expect(_refused(lambda: bank.vote("ada", shown)) == "approval_conflict", "nobody votes twice")
    expect(not answer.done() and not bank.paid(), "nothing goes on before the second vote")
    click.echo("             Ada approves; it still waits. Grace approves:")
    expect(bank.vote("grace", shown) == "approved", "two people are")
    raw = answer.result(READY_S)
    (call,) = raw.parse().choices[0].message.tool_calls
    expect(raw.headers["x-lockgate-approval"] == shown["id"], "the client that waited has its answer")
    expect(orjson.loads(call.function.arguments) == _PAYMENT, "what was approved is what the application gets")
    say("approved", f"{call.function.name} {call.function.arguments}", raw.headers)
    Remote(bank.url, Secret(bank.key)).post("/tools/bank.pay", _PAYMENT)
    done = bank.person("ada").get(f"/-/approvals/{shown['id']}")["approval"]
    expect(done["state"] == "succeeded" and bank.paid() == [_PAYMENT], "the application has paid once, under the same approval")
    click.echo(f"  paid       once, under the approval of its proposal, which has {done['state']}")


def leave_waiting(bank: Bank, token: str) -> None:
    """Leave a payment waiting for whoever opens the page, until Ctrl-C."""
    answer = bank.propose(_WAITING)
    shown = bank.waiting(answer)
    expect(bank.vote("ada", shown) == "pending", "the payment waits for one vote more")
    try:
        click.echo(f"\nA payment waits for one vote more, which may be yours: {shown['summary']}\n")
        click.echo(f"  page    {bank.url}/-/admin\n  token   {token}\n\nCtrl-C ends the demo.")
        wait([answer])
        while _undecided(answer):  # its connection was held as long as any is; a client comes back
            answer = bank.propose(_WAITING)
        click.echo(f"\nDecided: {_told(answer)}")
        Event().wait()
    except KeyboardInterrupt:
        click.echo("\nThe end.")


def _undecided(answer: "Future[Any]") -> bool:
    """Whether the client was told to come back."""
    return getattr(answer.exception(), "code", "") == "approval_pending"


def _told(answer: "Future[Any]") -> str:
    """What the client that waited got in the end."""
    error = answer.exception()
    if error is not None:
        return f"the client got {type(error).__name__}: {error}"
    message = answer.result().parse().choices[0].message
    calls = "; ".join(f"{call.function.name} {call.function.arguments}" for call in message.tool_calls or ())
    return f"the client got {calls or message.content!r}"


def _refused(ask: Callable[[], object]) -> str:
    """The code of the error that this raises; empty where it raises none."""
    try:
        ask()
    except RefusedError as error:
        return error.told
    return ""

