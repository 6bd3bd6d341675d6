"""Approvals under `kill -9`: gateways die again and again between the opening of an approval and its outcome, and nothing is done twice.

Each chapter is a fresh deployment on one file with one or two gateway processes. Callers present actions as SDKs do until they know what
came of them, people vote, and the gateways are killed at named places. What reached the upstream is told by the upstream itself.

`LOCKGATE_KILLS=N` kills that often, `make kills` a thousand times (ten minutes), `make kills KILLS=10000` for a night; `LOCKGATE_SEED=N` chooses the seed, which is printed.
"""

import asyncio
import json
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.clock import SystemClock, SystemIds
from gateway.core.approval import OPEN, State, Ticket
from gateway.identity.accounts import new_token
from gateway.keyring import new_key
from gateway.secret import Secret
from gateway.store.approvals_protocol import Person, Stamped, TicketFilter
from gateway.store.database import open_readonly
from gateway.store.doctor import examine
from gateway.store.sqlite import SqliteStore

KILLS = int(os.environ.get("LOCKGATE_KILLS", "1000" if os.environ.get("LOCKGATE_LONG") else "60"))
MANY = 1000  # kills, after which most places have been met, and every end
A_CHAPTER = 30  # kills, and then a new deployment: so a seed's failure has a short history
CALLERS = 10
SPEED = 10  # of the gateways' clock
JUMP_S = 75.0  # from one process to the next: by then the lease of the one before is over
LIFE_S = 0.8  # of a process that does not come by the place where it was to die
END_S = 60.0  # by when everybody has an answer, once nobody dies any more
ENVIRON = {"PEPPER": "pepper-of-the-tests-0123456789abcdef", "ADMIN": "admin-token-of-the-tests", "ONE_KEY": "sk-provider-key-one-0123456789"}
CONFIG = """
[providers.one]
adapter = "openai"
base_url = "{url}/v1"
api_key = "env:ONE_KEY"
[auth]
pepper = "env:PEPPER"
[admin]
token = "env:ADMIN"
[approvals]
unexpired = "1000h"
retry_after = "1s"
[budgets.everything]
scope = "all"
limit = "1000"
[prices."one/m"]
input = "1.00"
output = "2.00"
"""
ROUTE = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "m"
[route.retry]
attempts = 1
"""
TOOL = """
[[tool]]
name = "{name}"
method = "POST"
url = "{url}/tools/{name}"
effect = "{effect}"
private = true
[tool.arguments]
required = ["item", "amount"]
[tool.arguments.properties]
item = {{ type = "string" }}
amount = {{ type = "integer" }}
"""
TOOLS = {"once": "at_most_once", "again": "idempotent", "auto-once": "at_most_once", "auto-again": "idempotent"}
# What the words of a request ask for: the rule that holds it, and the settings of its approval.
WORDS = {"held": "", "mailed": 'mode = "execute"', "weighed": "", "brief": 'expires = "40s"', "short": 'hold = "2s"'}
POLICY = '[[rule]]\nid = "tools-ok"\nphase = "tool_call"\neffect = "allow"\nmatch = { tools = ["*"] }\n' + "".join(f"""
[[rule]]
id = "{word}"
when = 'texts.exists(text, text.contains("{word}"))'
effect = "require_approval"
quorum = {2 if word == "weighed" else 1}
approval = {{ {", ".join(filter(None, [settings, "" if "expires" in settings else 'expires = "1000h"']))} }}
""" for word, settings in WORDS.items()) + "".join(f"""
[[rule]]
id = "{name}"
phase = "{phase}"
{what}
effect = "require_approval"
approval = {{ expires = "1000h", {settings} }}
""" for name, phase, what, settings in (
    ("tools", "tool_call", 'match = { tools = ["once", "again", "app.note"] }', 'mode = "release"'),
    ("automatic", "tool_call", 'match = { tools = ["auto-*"] }', 'mode = "execute"'),
    ("secrets", "response", "when = 'response.text.contains(\"secret\")'", 'mode = "release"')))
PLACES = [f"{place} {when}" for place, weight in {
    "approvals.find": 1, "approvals.open": 3, "approvals.vote": 3, "approvals.replace": 2, "approvals.release": 2, "approvals.kept": 1, "approvals.take_kept": 2,
    "approvals.keep": 2, "approvals.delivered": 3, "approvals.forget_kept": 2, "approvals.sweep": 1, "approvals.happen": 1, "approvals.list": 1, "journal.begin": 4,
    "journal.finish": 4, "journal.refuse": 1, "transport.send": 4, "answer.read": 3, "answer.chunk": 3}.items()
    for when in ("before", "after", "amid") for _ in range(weight)]


@dataclass(frozen=True)
class Wish:
    """What one caller wants: an action, and what people will say of it."""

    item: str
    word: str  # of a request; or the tool that is called or proposed; or `secret`
    verdict: str  # approve, deny, edit, ignore
    stream: bool = False
    proposed: bool = False
    amount: int = 5

    @property
    def path(self) -> str:
        return f"/tools/{self.word}" if self.word in TOOLS and not self.proposed else "/v1/chat/completions"

    @property
    def body(self) -> dict[str, Any]:
        if self.path != "/v1/chat/completions":
            return {"item": self.item, "amount": self.amount}
        said = f"propose {self.word} {self.item} now" if self.proposed else f"say {self.word} {self.item}"
        return {"model": "fast", "messages": [{"role": "user", "content": said}], **({"stream": True} if self.stream else {})}


def wish(number: int, dice: random.Random) -> Wish:
    item, verdict = f"i{number}", dice.choices(["approve", "edit", "deny"], [8, 2, 1])[0]
    match dice.randrange(4):
        case 0 | 1:
            word = dice.choice([*WORDS, "secret"])
            verdict = "ignore" if word == "brief" else "approve" if word == "secret" and verdict == "edit" else verdict
            return Wish(item, word, verdict, stream=dice.random() < 0.5)
        case 2:
            return Wish(item, dice.choice(list(TOOLS)), verdict, amount=dice.choice([5, 7]))
        case _:
            return Wish(item, dice.choice(["once", "again", "app.note"]), verdict, stream=dice.random() < 0.5, proposed=True)


class Retry(Exception):
    """The caller does not know yet."""


@dataclass
class Chapter:
    """One deployment from its beginning to its end. `wrong` is what must not be: empty."""

    nursery: Any
    upstream: Any
    folder: Path
    dice: random.Random
    pair: bool
    gates: dict[int, Any] = field(default_factory=dict)  # by their ports
    wishes: dict[str, Wish] = field(default_factory=dict)
    approved: dict[str, str] = field(default_factory=dict)  # the digests that somebody meant to approve, by ticket
    denied: set[str] = field(default_factory=set)
    edited: defaultdict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))  # what an item's action was to become, each time
    ends: Counter[str] = field(default_factory=Counter)
    died: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    key: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    ahead_s: float = 0.0
    over: asyncio.Event = field(default_factory=asyncio.Event)  # nobody begins anything new

    async def lay(self) -> None:
        """Write the deployment, with one key and two people."""
        for name, text in {"config.toml": CONFIG.format(url=self.upstream.url), "policies/p.toml": POLICY, "routes/r.toml": ROUTE + "".join(
                TOOL.format(name=name, url=self.upstream.url, effect=effect) for name, effect in TOOLS.items())}.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)
        clock, ids = SystemClock(), SystemIds(SystemClock())
        store = SqliteStore(self.folder / "lockgate.db", "tests")
        await store.start(now_ns=clock.now_ns())
        self.key, made = new_key(ids, Secret(ENVIRON["PEPPER"]), now_ns=clock.now_ns(), name="tests")
        await store.keys.create(made)
        for name in ("ada", "grace"):
            self.tokens[name], kept = new_token(ids, Secret(ENVIRON["PEPPER"]))
            await store.people.add(Person(name, name, "operate", token=kept, created_ns=clock.now_ns()), Stamped("created", "tests", clock.now_ns()))
        await store.close()

    # Processes.

    async def start(self, port: int, place: str = "") -> None:
        if not self.pair:
            self.ahead_s += JUMP_S
        self.gates[port] = await self.nursery.start(
            port, self.folder, place=place, nth=self.dice.choice([1, 1, 2, 3, 5]), seed=self.dice.random(), speed=SPEED, ahead_s=self.ahead_s,
            environ=ENVIRON)

    async def kill(self, port: int) -> None:
        """Wait until a process has died where it should, or kill it wherever it is; then look at what it left."""
        gate = self.gates[port]
        with suppress(TimeoutError):
            await asyncio.wait_for(gate.gone.wait(), LIFE_S)
        if not gate.gone.is_set():
            gate.place = "anywhere"
            os.kill(gate.pid, signal.SIGKILL)
            await asyncio.wait_for(gate.gone.wait(), END_S)
        self.died[gate.place] += 1
        await asyncio.to_thread(self.examine, gate.place)

    def examine(self, place: str) -> None:
        connection = open_readonly(self.folder / "lockgate.db")
        try:
            ahead_ns = int((self.ahead_s + 1) * 1e9) + (SPEED - 1) * (SystemClock().now_ns() - self.nursery.epoch_ns)
            found = [each for each in examine(connection, now_ns=SystemClock().now_ns() + ahead_ns) if not each.invariant.note]
            self.wrong += [f"the doctor finds after a death at {place}: {each.invariant.name} {each.rows[:3]}" for each in found]
        finally:
            connection.close()

    async def run(self, kills: int) -> None:
        """The whole chapter."""
        await self.lay()
        self.upstream.log.clear()
        ports = [self.nursery.port() for _ in range(2 if self.pair else 1)]
        for port in ports:
            await self.start(port, self.dice.choice(PLACES))
        async with asyncio.TaskGroup() as tasks:
            people = tasks.create_task(self.people())
            callers = [tasks.create_task(self.caller(number)) for number in range(CALLERS)]
            for number in range(kills):
                port = ports[number % len(ports)]
                await self.kill(port)
                last = number >= kills - len(ports)
                await self.start(port, "" if last else self.dice.choice(PLACES))
            self.over.set()
            _done, late = await asyncio.wait(callers, timeout=END_S)
            self.wrong += [f"a caller knows nothing yet: {each.get_name()}" for each in late]
            for each in late:
                each.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    while await self.unsolved():
                        await asyncio.sleep(0.05)
            people.cancel()
        for port in ports:
            self.gates[port].line.close()
            await asyncio.wait_for(self.gates[port].gone.wait(), END_S)
        await self.judge()

    # Callers.

    def address(self) -> str:
        return str(self.dice.choice([gate.url for gate in self.gates.values()]))

    async def caller(self, number: int) -> None:
        """One wish after another, each until it is known what came of it; now and then two callers have the same."""
        task = asyncio.current_task()
        assert task is not None
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {self.key}"}) as session:
            while not self.over.is_set():
                made = wish(100_000 * number + len(self.wishes), self.dice)
                self.wishes[made.item] = made
                task.set_name(str(made))
                both = [self.until_known(session, made) for _ in range(2 if self.dice.random() < 0.2 else 1)]
                await asyncio.gather(*both)

    async def until_known(self, session: aiohttp.ClientSession, made: Wish) -> None:
        for _attempt in range(2000):
            patience_s = self.dice.choice([20.0, 20.0, 20.0, 0.2])
            try:
                async with asyncio.timeout(patience_s):
                    end = await self.present(session, made, made.path, made.body)
            except (Retry, aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(self.dice.uniform(0, 0.05))
            else:
                self.ends[end] += 1
                return
        self.wrong.append(f"{made} was presented 2000 times")

    async def present(self, session: aiohttp.ClientSession, made: Wish, path: str, body: dict[str, Any]) -> str:
        """Present an action once. Raises `Retry` where the answer says so."""
        headers = self.dice.choice([{}, {}, {"X-Stainless-Read-Timeout": "8"}, {"Prefer": "respond-async"}])
        async with session.post(self.address() + path, json=body, headers=headers) as answer:
            raw = await answer.read()
            status, retry = answer.status, answer.headers.get("X-Should-Retry") == "true"
        if status == 202 or retry:
            raise Retry
        if status == 200 and not body.get("stream"):
            return await self.answered(session, made, path, json.loads(raw))
        if status == 200:
            whole = assembled(raw)
            return self.refused(made, whole["error"]) if "error" in whole else await self.answered(session, made, path, whole)
        told = json.loads(raw)
        return self.refused(made, told.get("error") or told)

    def refused(self, made: Wish, error: dict[str, Any]) -> str:
        code = error["code"]
        if code in ("overloaded", "approval_pending", "store_unavailable"):  # within a stream: an application begins anew
            raise Retry
        if code == "approval_conflict" and (made.proposed or made.word == "secret"):  # another connection of this caller was given the answer
            raise Retry
        allowed = {"approval_denied": made.verdict in ("deny", "ignore"), "approval_unknown": TOOLS.get(made.word) == "at_most_once",
                   "upstream_rejected": made.amount == 7}
        if not allowed.get(code):
            self.wrong.append(f"{made} ends with {error}")
        return str(code)

    async def answered(self, session: aiohttp.ClientSession, made: Wish, path: str, answer: dict[str, Any]) -> str:
        """Compare an answer with what was wished for, or with what people have made of it."""
        wanted = self.edited[made.item] or [{"item": made.item, "amount": 5} if made.proposed else made.body]
        if path != "/v1/chat/completions":
            right = answer.get("did") in wanted
        elif made.proposed:
            calls = answer["choices"][0]["message"].get("tool_calls")
            arguments = json.loads(calls[0]["function"]["arguments"]) if calls else None
            if arguments is None and "nobody knows what came of it" in answer["choices"][0]["message"]["content"]:
                return self.refused(made, {"code": "approval_unknown"})
            right = made.verdict == "deny" if arguments is None else made.verdict != "deny" and arguments in wanted
            if right and arguments is not None and made.word in TOOLS:
                return await self.called(session, made, arguments)
        else:
            said = answer["choices"][0]["message"]["content"]
            right = said in [f"done {each['messages'][-1]['content']}" for each in wanted]
        right = right and (made.verdict in ("approve", "edit") or made.proposed)
        if not right:
            self.wrong.append(f"{made} is answered with {answer}")
        return "answered"

    async def called(self, session: aiohttp.ClientSession, made: Wish, arguments: dict[str, Any]) -> str:
        """The application makes the call that its model proposed."""
        while True:
            try:
                return await self.present(session, made, f"/tools/{made.word}", arguments)
            except (Retry, aiohttp.ClientError, OSError):
                await asyncio.sleep(self.dice.uniform(0, 0.05))

    # People.

    async def ask(self, session: aiohttp.ClientSession, by: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.tokens[by]}"}
        async with session.request(method, self.address() + path, json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def people(self) -> None:
        """Look at what waits, over and over, and decide each as its wish says."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(5)) as session:
            while True:
                with suppress(aiohttp.ClientError, OSError, TimeoutError):
                    for state in ("pending", "unknown"):
                        status, page = await self.ask(session, "ada", "GET", f"/-/approvals?state={state}&limit=200")
                        for row in page["approvals"] if status == 200 else ():
                            await self.decide(session, row)
                await asyncio.sleep(0.02)

    async def decide(self, session: aiohttp.ClientSession, row: dict[str, Any]) -> None:
        at = f"/-/approvals/{row['id']}"
        status, told = await self.ask(session, "ada", "GET", at)
        if status != 200:
            return
        ticket = told["approval"]
        arguments = ticket["action"]["arguments"]
        made = self.wishes[item_of(arguments)]
        if ticket["state"] == "unknown":
            sent = any(each.key == ticket["id"] for each in self.upstream.log)
            await self.ask(session, "grace", "POST", f"{at}/resolve", {"outcome": "succeeded" if sent else "failed", "comment": "I have looked."})
        elif ticket["state"] == "pending" and made.verdict == "edit" and not ticket["edited_from"]:
            changed = changed_by_people(arguments)
            self.edited[made.item].append(changed)
            approve = self.dice.random() < 0.5
            status, told = await self.ask(
                session, self.dice.choice(["ada", "grace"]), "POST", f"{at}/edit", {"digest": ticket["digest"], "arguments": changed, "approve": approve})
            if status not in (200, 409):
                self.wrong.append(f"{made} cannot be edited: {told}")
        elif ticket["state"] == "pending" and made.verdict != "ignore":
            verdict = "deny" if made.verdict == "deny" else "approve"
            if verdict == "deny":
                self.denied.add(ticket["id"])
            else:
                self.approved[ticket["id"]] = ticket["digest"]
            for by in ("ada", "grace"):
                status, told = await self.ask(session, by, "POST", f"{at}/vote", {"verdict": verdict, "digest": ticket["digest"], "comment": "So."})
                if status not in (200, 409, 503):
                    self.wrong.append(f"{by} cannot vote on {made}: {told}")

    async def unsolved(self) -> bool:
        """Whether something waits, or is being done. Nobody waits for what a caller has left after its answer."""
        async with aiohttp.ClientSession() as session:
            for state in ("pending", "executing", "unknown"):
                status, page = await self.ask(session, "ada", "GET", f"/-/approvals?state={state}")
                if status != 200 or page["approvals"]:
                    return True
        return False

    # What it comes to.

    async def judge(self) -> None:
        """Compare what is on record with what people meant and what the upstream saw."""
        self.examine("the end")
        store = SqliteStore(self.folder / "lockgate.db", "judge")
        await store.start(now_ns=SystemClock().now_ns())
        tickets: dict[str, Ticket] = {}
        after = None
        while page := await store.approvals.list(TicketFilter(after=after, limit=200)):
            tickets.update({each.id: each for each in page})
            after = page[-1].id
        claims = {entry["call_id"]: each for each in tickets for entry in await store.approvals.history(each) if entry["event"] == "claim"}
        await store.close()
        dispatched: Counter[str] = Counter()
        for sent in self.upstream.log:
            made = self.wishes[sent.item]
            if sent.kind == "model" and (made.proposed or made.word == "secret"):
                continue  # nobody is asked about it
            ticket = tickets.get(claims.get(sent.call, ""))
            if ticket is None:
                self.wrong.append(f"{sent} was sent under no approval")
            else:
                dispatched[ticket.id] += 1
                self.check(ticket, sent)
        self.wrong += [said for ticket in tickets.values() for said in at_the_end(ticket, dispatched[ticket.id])]
        for line in (self.folder / "gateways.log").read_text().splitlines():
            if json.loads(line)["level"] == "error":
                self.wrong.append(f"a gateway said: {line}")

    def check(self, ticket: Ticket, sent: Any) -> None:
        """What was sent is what was approved, by as many people as were asked."""
        shown = ticket.shown["arguments"]
        same = sent.body["messages"] == shown["messages"] if sent.kind == "model" else sent.body == shown
        votes = {vote.voter.id for vote in ticket.votes if vote.verdict == "approve" and vote.digest == ticket.digest}
        meant = self.approved.get(ticket.id) == ticket.digest or (bool(ticket.edited_from) and shown_in(shown, self.edited[sent.item]))
        if not same or not meant or ticket.id in self.denied or len(votes) < (2 if ticket.rule == "weighed" else 1):
            self.wrong.append(f"{sent} was sent under {ticket}, votes of {votes}")
        if sent.kind != "model" and sent.key != ticket.id:
            self.wrong.append(f"{sent} has another key than its approval {ticket.id}")


def at_the_end(ticket: Ticket, times: int) -> Iterator[str]:
    """What is wrong with a ticket that was dispatched so often, once everything is over."""
    if times > 1 and ticket.effect != "idempotent":
        yield f"{ticket} was sent {times} times"
    if ticket.state is State.SUCCEEDED and ticket.kind in ("request", "tool") and not times:
        yield f"{ticket} succeeded, and nothing was sent"
    if ticket.state in OPEN and not (ticket.state is State.APPROVED and ticket.mode == "release"):
        yield f"{ticket} is {ticket.state} at the end"


def item_of(arguments: dict[str, Any]) -> str:
    if "item" in arguments:
        return str(arguments["item"])
    said = arguments["messages"][-1]["content"] if "messages" in arguments else arguments["choices"][0]["message"]["content"]
    return next(word for word in str(said).split() if word[0] == "i" and word[1:].isdigit())


def changed_by_people(arguments: dict[str, Any]) -> dict[str, Any]:
    if "item" in arguments:
        return {**arguments, "amount": arguments["amount"] + 1000}
    message = arguments["messages"][-1]
    return {**arguments, "messages": [{**message, "content": f"{message['content']} politely"}]}


def shown_in(shown: Any, edited: list[Any]) -> bool:
    """Whether an action is one that people have made, whatever rules put into it."""
    return any(all(shown.get(name) == value for name, value in each.items()) for each in edited)


def assembled(raw: bytes) -> dict[str, Any]:
    """A streamed answer as a plain one. Raises `Retry` for one that was broken off."""
    if not raw.endswith(b"data: [DONE]\n\n") and b'"error"' not in raw:
        raise Retry
    message: dict[str, Any] = {"content": ""}
    for line in raw.splitlines():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            return {"error": event["error"]}
        for choice in event["choices"]:
            message["content"] += choice["delta"].get("content") or ""
            if choice["delta"].get("tool_calls"):
                message["tool_calls"] = choice["delta"]["tool_calls"]
    return {"choices": [{"message": message}]}


@pytest.mark.timeout(60 + 4 * KILLS)
async def test_whenever_a_gateway_is_killed_what_was_approved_is_done_at_most_once_and_everybody_learns_what_came_of_it(nursery, upstream, tmp_path):
    seed = int(os.environ.get("LOCKGATE_SEED") or random.randrange(2**32))
    print(f"seed {seed}")
    dice, ends, died, sent = random.Random(seed), Counter[str](), Counter[str](), 0
    for number, first in enumerate(range(0, KILLS, A_CHAPTER)):
        chapter = Chapter(nursery, upstream, tmp_path / f"chapter-{number}", random.Random(dice.random()), pair=number % 2 == 1)
        await chapter.run(min(A_CHAPTER, KILLS - first))
        ends += chapter.ends
        died += chapter.died
        sent += len(upstream.log)
        if chapter.wrong:
            pytest.fail("\n".join([f"seed {seed}, chapter {number}:", *chapter.wrong[:20]]))
    print(f"{sum(died.values())} deaths at {len(died)} places: {dict(sorted(died.items()))}")
    print(f"{sum(ends.values())} callers: {dict(ends)}; {sent} calls reached the upstream")
    assert ends["answered"] > KILLS / 10
    assert died["anywhere"] < KILLS / 2  # the others died at the place that they were to die at
    if KILLS >= MANY:
        assert ends.keys() >= {"answered", "approval_denied", "approval_unknown", "upstream_rejected"}
        assert len(died) > 0.7 * len(set(PLACES))
