"""`lockgate demo`: the gateway at work, in real processes, with the official client. Exit code 0 only if all of it really happened."""

import signal
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import click
import orjson

from gateway.cli.demo_approvals import BANK_RULES, BANK_TOOL, Bank, leave_waiting, show_approval
from gateway.cli.demo_stage import DemoFailed, Processes, expect, lockgate, say
from gateway.cli.remote import Remote
from gateway.errors import SetupError
from gateway.secret import Secret

_MOST_CALLS: Final = 15

_CONFIG: Final = """
[server]
port = 0

[auth]
pepper = "file:secrets/pepper"

[admin]
token = "file:secrets/admin-token"

[providers.primary]
adapter = "openai"
base_url = "{primary}"

[providers.backup]
adapter = "openai"
base_url = "{backup}"

[prices."primary/sim-large"]
input = "2.50"
output = "10.00"

[prices."backup/sim-small"]
input = "0.15"
output = "0.60"

[budgets.students]
scope = "team"
of = ["students"]
limit = "0.002"
window = "day"
least_output = 1
"""

_ROUTES: Final = """
[[route]]
name = "assistant"
[[route.targets]]
provider = "primary"
model = "sim-large"
[[route.targets]]
provider = "backup"
model = "sim-small"
[route.retry]
attempts = 1
"""

_POLICIES: Final = """
[[rule]]
id = "no-payroll-data"
match = { teams = ["interns"] }
when = '''texts.exists(text, text.contains("payroll"))'''
effect = "deny"
message = "Payroll data does not go to a model from this team."
remedy = "Ask the finance team to run this for you."

[[rule]]
id = "no-large-payments"
phase = "tool_call"
match = { tools = ["pay"] }
when = "double(tool.args.amount) > 100.0"
effect = "deny"
message = "A model does not pay more than 100 by itself."

[[rule]]
id = "no-addresses-in-answers"
phase = "response"
effect = "redact"
redact = { detectors = ["email"] }
"""

_PAY: Final = {"type": "function", "function": {"name": "pay", "parameters": {
    "type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}}}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--keep", is_flag=True, help="Leave the page open in the end, with an action that waits for you; ends on Ctrl-C.")
def demo(*, keep: bool) -> None:
    """Start a gateway and two simulated providers; show calls that are allowed, denied, redacted, stopped by a budget, routed round
    a dead provider, and one that waits until two people approve it.
    """
    try:
        import openai  # noqa: PLC0415 - only the demo needs it
    except ImportError as error:
        raise SetupError("The demo talks through the official client: pip install 'lockgate[demo]'.") from error
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _end))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockgate-demo-"))) / "deployment"
        threads = stack.enter_context(ThreadPoolExecutor(1))  # for who waits; the gateway is gone when this ends
        processes = Processes()
        stack.callback(processes.stop_all)
        click.echo("Setting up: a deployment folder, two simulated providers, a gateway, keys for the teams `interns` and `students`, "
                   "and Ada and Grace of finance.")
        lockgate(folder.parent, "init", str(folder))
        primary, primary_url = processes.start("simulate", "--port", "0", cwd=folder)
        _backup, backup_url = processes.start("simulate", "--port", "0", cwd=folder)
        _write_deployment(folder, primary_url, backup_url)
        key, poor = (_key(folder, team) for team in ("interns", "students"))
        _gateway, url = processes.start("serve", cwd=folder)
        admin = Remote(url, Secret((folder / "secrets" / "admin-token").read_text().strip()))
        people = {name: _person(admin, name) for name in ("ada", "grace")}
        click.echo(f"The gateway answers at {url}/v1. Now the official openai client, with only its base URL changed:\n")
        client = stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))
        _show(client, openai)
        answered = _show_budget(client.with_options(api_key=poor), openai, folder)
        _show_fallback(client, kill_primary=lambda: processes.stop(primary))
        bank = Bank(client, threads, url, key, people, backup_url)
        show_approval(bank)
        _show_journal(folder, completed=8 + answered)
        click.echo("\nAll of it happened.")
        if keep:
            leave_waiting(bank, admin.token.reveal())


def _end(_signal: int, _frame: object) -> None:
    """End as on Ctrl-C: what was started is stopped, and the folder is gone."""
    sys.exit(128 + signal.SIGTERM)


def _write_deployment(folder: Path, primary_url: str, backup_url: str) -> None:
    for name, text in {
        "config.toml": _CONFIG.format(primary=primary_url, backup=backup_url),
        "routes/demo.toml": _ROUTES + BANK_TOOL.format(bank=backup_url.removesuffix("/v1")), "policies/demo.toml": _POLICIES + BANK_RULES,
    }.items():
        path = folder / name
        for shipped in path.parent.glob("*.toml"):
            shipped.unlink()  # the demo brings its own
        path.write_text(text)


def _key(folder: Path, team: str) -> str:
    made: str = orjson.loads(lockgate(folder, "keys", "create", "--name", "demo", "--team", team, "--json"))["key"]
    return made


def _person(admin: Remote, name: str) -> str:
    """Somebody who may approve payments; their API token."""
    admin.post("/-/people", {"id": name, "permission": "approve", "roles": ["finance"]})
    made: str = admin.post(f"/-/people/{name}/token")["token"]
    return made


def _ask(client: Any, text: str) -> Any:
    return client.chat.completions.with_raw_response.create(model="assistant", messages=[{"role": "user", "content": text}])


def _show(client: Any, openai: Any) -> None:
    """The calls. `client` is an `openai.OpenAI`, `openai` its module (imported late, hence no types)."""
    allowed = _ask(client, "Say hello to everyone.")
    expect(allowed.headers["x-lockgate-target"] == "primary/sim-large", "the allowed call went to the primary provider")
    say("allowed", f"{allowed.parse().choices[0].message.content!r}", allowed.headers)

    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": "Tell me a short story."}], stream=True) if chunk.choices]
    expect(sum(1 for piece in pieces if piece) > 1, "the stream came in pieces")
    click.echo(f"  streamed   {len(pieces)} chunks: {''.join(pieces)!r}")

    try:
        _ask(client, "Summarise the payroll of last month.")
    except openai.PermissionDeniedError as error:
        expect(error.code == "forbidden" and error.response.headers["x-lockgate-rule"] == "no-payroll-data", "the rule denied the call")
        say("denied", error.body["message"], error.response.headers)
    else:
        raise DemoFailed("The call that a rule forbids was answered.")

    _show_rules_on_answers(client)


def _show_budget(client: Any, openai: Any, folder: Path) -> int:
    """Calls of a team with a fifth of a cent a day, until it is spent; how many were answered."""
    shortened = False
    for answered in range(_MOST_CALLS):
        try:
            answer = _ask(client, "words 40")
        except openai.RateLimitError as error:
            expect(error.code == "budget_exceeded" and error.body["account"] == "students/students", "the team's budget refused the call")
            expect(shortened, "the last answer was shortened to what was left")
            say("stopped", error.body["message"], error.response.headers)
            _show_books(folder)
            return answered
        shortened = "x-lockgate-max-tokens" in answer.headers
        words = len(answer.parse().choices[0].message.content.split())
        cost, left = (answer.headers[f"x-lockgate-{name}-usd"] for name in ("cost", "budget-remaining"))
        click.echo(f"  paid       {cost} USD for {words} words{' (shortened)' if shortened else ''}; {left} USD are left")
    raise DemoFailed("The budget was never spent.")


def _show_books(folder: Path) -> None:
    click.echo("\nWhat the books say (`lockgate budgets show`):\n")
    click.echo(lockgate(folder, "budgets", "show"))
    (account,) = orjson.loads(lockgate(folder, "budgets", "show", "students/students", "--json"))["accounts"]
    expect(Decimal(account["used_usd"]) <= Decimal(account["limit_usd"]), "no more was spent than the limit")
    expect(Decimal(account["reserved_usd"]) == 0, "nothing is set aside any more")


def _show_fallback(client: Any, *, kill_primary: Callable[[], None]) -> None:
    kill_primary()
    click.echo("  (the primary provider is now dead)")
    survived = _ask(client, "Are you still there?")
    expect(survived.headers["x-lockgate-target"] == "backup/sim-small", "the call went round the dead provider")
    expect(survived.headers["x-lockgate-attempts"] == "2", "both attempts are on record")
    say("survived", f"{survived.parse().choices[0].message.content!r}", survived.headers)


def _show_rules_on_answers(client: Any) -> None:
    """What a model proposes and what it says is judged as well, while it streams."""
    proposed = client.chat.completions.with_raw_response.create(
        model="assistant", messages=[{"role": "user", "content": 'call pay {"amount": 20} call pay {"amount": 5000}'}], tools=[_PAY])
    choice = proposed.parse().choices[0]
    expect([call.function.arguments for call in choice.message.tool_calls] == ['{"amount":20}'], "the small payment alone went through")
    expect("no-large-payments" in choice.message.content, "the model and the application can read why")
    say("withheld", f"pay 20 went through; {choice.message.content!r}", proposed.headers)

    said = "".join(chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(
        model="assistant", messages=[{"role": "user", "content": "say Write to ada@example.org for more"}], stream=True) if chunk.choices)
    expect(said == "Write to [redacted:email] for more", "the address was taken out of the stream")
    click.echo(f"  redacted   {said!r}")


def _show_journal(folder: Path, *, completed: int) -> None:
    click.echo("\nWhat the journal says (`lockgate calls tail`):\n")
    click.echo(lockgate(folder, "calls", "tail"))
    calls = orjson.loads(lockgate(folder, "calls", "tail", "--json"))
    expect([call["outcome"] for call in calls].count("completed") == completed, f"{completed} calls were completed")
    expect([call["outcome"] for call in calls].count("refused") == 2, "two calls were refused")
    expect(all(call["cost_usd"] is not None for call in calls), "every call has its cost")
    click.echo(lockgate(folder, "doctor").strip())
