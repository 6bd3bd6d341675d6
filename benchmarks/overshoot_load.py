"""The deployment and the load of overshoot.py: gateways on one database, providers that fail, clients that ask for more than there is."""

import asyncio
import itertools
import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import aiohttp

from benchmarks.books import dollars
from benchmarks.processes import Processes

IN_FLIGHT: Final = 1250  # calls at a time to one process
SHORTEST_NAP_S: Final = 1.0  # as `retry-after` says; doubled each time, the more callers the longer
PROMPT_TOKENS: Final = 4 + 2 + 3  # as the simulator counts "words N"
# pico-USD a token, of the input and of the output, by the provider that has the model
PRICES: Final = {"one": (500_000, 8_000_000), "two": (100_000, 2_000_000)}
TEAMS: Final = ("red", "blue")
KEYS: Final = 4
# What of all demand each budget lets through. Demand is larger on each of the accounts named here.
SHARES: Final = {"everything": 0.55, "team": 0.2, "key": 0.07, "user": 0.015}

DEPLOYMENT: Final = """
[server]
max_in_flight = 20000
drain_timeout = "20s"
[store]
busy_timeout = "30s"
[journal]
bodies = "none"
[log]
level = "warning"
[providers.one]
adapter = "openai"
base_url = "{one}"
[providers.two]
adapter = "openai"
base_url = "{two}"
[prices."one/large"]
input = "0.50"
output = "8.00"
[prices."two/small"]
input = "0.10"
output = "2.00"
[models."one/large"]
max_output = 48
[models."two/small"]
max_output = 48
"""
BUDGETS: Final = """
[budgets.everything]
scope = "all"
limit = "{everything}"
least_output = 1
[budgets.team-month]
scope = "team"
of = ["red"]
limit = "{team}"
window = "month"
timezone = "Europe/Berlin"
least_output = 1
[budgets.key-day]
scope = "key"
of = ["{k0}"]
limit = "{key}"
window = "day"
least_output = 1
[budgets.user-rolling]
scope = "user"
of = ["*.u0"]
limit = "{user}"
window = "24h"
least_output = 1
"""
SOFT: Final = """
[budgets.everything]
scope = "all"
soft = "{everything}"
"""
RULE: Final = """
[[rule]]
id = "all-is-spent"
when = '''"all" in budget.spent && budget.spent["all"] >= usd("{everything}")'''
effect = "deny"
message = "The budget is spent."
"""
ROUTES: Final = "".join(
    f'[[route]]\nname = "{name}"\n'
    + "".join(f'[[route.targets]]\nprovider = "{provider}"\nmodel = "{model}"\n' for provider, model in targets)
    + '[route.deadlines]\nheaders = "{wait_s}s"\nfirst_token = "{wait_s}s"\nidle = "{wait_s}s"\ntotal = "{total_s}s"\n'
    + f'[route.retry]\nattempts = {attempts}\nbase = "20ms"\n'
    for name, targets, attempts in (
        ("retried", (("one", "large"),), 2), ("backed-up", (("one", "large"), ("two", "small")), 1), ("cheap", (("two", "small"),), 1)))
# Which faults the providers play, and how many of a thousand requests each befalls.
FAULTS: Final = (
    ("status = 503", 40), ("status = 429\nretry_after = 0.01", 10), ("reset = true", 5), ("cut_after_chunks = 3", 15), ("end_after_chunks = 2", 5),
    ("error_event_after_chunks = 4", 5), ('garbage = "json"\ngarbage_after_chunks = 3', 5), ("empty = true", 5), ("no_usage = true", 40),
    ("drop_done = true", 5), ('delay_headers = "300ms"', 20), ("hang = true", 0.5), ("stall_after_chunks = 2", 0.5))


@dataclass(frozen=True)
class Ask:
    """One call as a client makes it. `most` is its max_tokens, `leaves` after how many chunks its client closes the connection."""

    key: int
    user: str
    route: str
    words: int
    most: int | None
    stream: bool = False
    choices: int = 1
    leaves: int | None = None

    @property
    def worth_pusd(self) -> int:
        """What it costs where all goes well."""
        input_pusd, output_pusd = PRICES["two" if self.route == "cheap" else "one"]
        return PROMPT_TOKENS * input_pusd + self.choices * min(self.words, self.most or self.words) * output_pusd

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.route, "user": f"k{self.key}.{self.user}", "messages": [{"role": "user", "content": f"words {self.words}"}]}
        if self.most is not None:
            body["max_tokens"] = self.most
        if self.choices > 1:
            body["n"] = self.choices
        if self.stream:
            body["stream"] = True
        return body


def draw(dice: random.Random, calls: int) -> list[Ask]:
    """The calls of a seed."""
    users = max(2, min(5, calls // 400))
    asks = []
    for _ in range(calls):
        words = dice.randrange(1, 40)
        stream = dice.random() < 0.5
        asks.append(Ask(
            dice.randrange(KEYS), f"u{dice.randrange(users)}", dice.choice(("retried", "backed-up", "backed-up", "cheap")), words,
            dice.choice((words, words, words + 20, max(1, words // 2), None)), stream, 2 if dice.random() < 0.05 else 1,
            dice.randrange(1, 12) if stream and dice.random() < 0.03 else None))
    return asks


def scenario(dice: random.Random, requests: int) -> str:
    """A provider that fails at requests that the dice choose."""
    text = '[pacing]\ndelay_between_tokens = "10ms"\n'
    for fault, of_thousand in FAULTS:
        nth = [number for number in range(1, requests) if dice.random() < of_thousand / 1000]
        text += f"[[fault]]\nmatch = {{ nth = {nth or [requests]} }}\n{fault}\n"
    return text


class Town:
    """The gateways, the providers and the keys of one run."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.gateways: list[tuple[asyncio.subprocess.Process, str]] = []
        self.simulators: dict[str, asyncio.subprocess.Process] = {}
        self.keys: list[tuple[str, str]] = []  # id and secret
        self.limits: dict[str, int] = {}  # nano-USD, by the name of the account

    async def build(self, asks: Sequence[Ask], dice: random.Random, *, gateways: int, after_the_fact: bool) -> None:
        """Start everything, with limits that are shares of what these calls are worth."""
        folder = self.processes.folder
        await self.processes.lay()
        urls = {}
        for name, requests in (("one", 3 * len(asks)), ("two", 3 * len(asks))):
            (folder / f"{name}.toml").write_text(scenario(dice, requests))
            self.simulators[name], urls[name] = await self.processes.start(
                "simulate", "--port", "0", "--scenario", f"{name}.toml", "--log", f"{name}.jsonl", "--keep", "0")
        wait_s = 5 + len(asks) // 500  # so many calls at once are slow
        (folder / "routes/routes.toml").write_text(ROUTES.format(wait_s=wait_s, total_s=2 * wait_s))
        (folder / "config.toml").write_text(DEPLOYMENT.format(**urls))
        self.keys = [await self.processes.key(f"k{number}", TEAMS[number % 2]) for number in range(KEYS)]
        worth = sum(ask.worth_pusd for ask in asks) // 1000
        nusd = {name: round(worth * share) for name, share in SHARES.items()}
        usd = {name: dollars(1000 * amount) for name, amount in nusd.items()}
        if after_the_fact:
            more = SOFT.format(**usd)
            (folder / "policies/rules.toml").write_text(RULE.format(**usd))
        else:
            more = BUDGETS.format(**usd, k0=self.keys[0][0])
            self.limits = {"team-month/red": nusd["team"], f"key-day/{self.keys[0][0]}": nusd["key"]}
            self.limits |= {f"user-rolling/{each}/k{n}.u0": nusd["user"] for n, (each, _secret) in enumerate(self.keys)}
        self.limits["everything/all"] = nusd["everything"]
        (folder / "config.toml").write_text(DEPLOYMENT.format(**urls) + more)
        self.gateways = await asyncio.gather(*(self.processes.start("serve", "--port", "0") for _ in range(gateways)))

    async def kill(self, place: int) -> None:
        """Kill one gateway and start another in its place, on the same port."""
        process, url = self.gateways[place]
        process.send_signal(signal.SIGKILL)
        await process.wait()
        self.gateways[place] = await self.processes.start("serve", "--port", url.rsplit(":", 1)[1])

    def accounts_of(self, user: str) -> list[str]:
        """The accounts with a limit that a request is on, by the `user` that its provider saw: `k0.u3`."""
        number = int(user[1:user.index(".")])
        names = ["everything/all", f"team-month/{TEAMS[number % 2]}", f"key-day/{self.keys[number][0]}", f"user-rolling/{self.keys[number][0]}/{user}"]
        return [name for name in names if name in self.limits]


class Load:
    """The clients. `answers` counts what became of calls; `refusing` are the accounts that refused one for good, each with the
    nano-USD that the smallest of them would have needed.
    """

    def __init__(self, town: Town, session: aiohttp.ClientSession, dice: random.Random) -> None:
        self.answers: Counter[str] = Counter()
        self.ended = 0
        self.refusing: dict[str, int] = {}
        self._town = town
        self._session = session
        self._dice = dice
        self._turn = itertools.count()
        self._one_more = asyncio.Condition()
        self._room = [asyncio.Semaphore(IN_FLIGHT) for _ in town.gateways]

    async def all(self, asks: Sequence[Ask]) -> None:
        """Make all calls at once, each until it is answered or refused for good."""
        longest_nap_s = 2 + len(asks) / 1000
        await asyncio.gather(*(self._until_answered(ask, longest_nap_s) for ask in asks))

    async def _until_answered(self, ask: Ask, longest_nap_s: float) -> None:
        nap_s = SHORTEST_NAP_S
        for _ in range(40):
            answer = await self.once(ask)
            if answer not in ("budget_busy", "disconnected", "store_unavailable", "overloaded"):
                break
            await asyncio.sleep(nap_s * (0.5 + self._dice.random()) if answer != "disconnected" else 0)
            nap_s = min(longest_nap_s, 2 * nap_s)
        async with self._one_more:
            self.ended += 1
            self._one_more.notify_all()

    async def have_ended(self, count: int) -> None:
        """Wait until so many calls are answered, or refused for good."""
        async with self._one_more:
            await self._one_more.wait_for(lambda: self.ended >= count)

    async def once(self, ask: Ask) -> str:
        """Make one call and say what became of it: `served`, `left`, `disconnected`, or the error's code."""
        place = next(self._turn) % len(self._room)
        async with self._room[place]:
            try:
                answer = await self._send(ask, self._town.gateways[place][1])
            except (aiohttp.ClientError, ConnectionError):
                answer = "disconnected"
        self.answers[answer] += 1
        return answer

    async def _send(self, ask: Ask, url: str) -> str:
        headers = {"Authorization": f"Bearer {self._town.keys[ask.key][1]}"}
        async with self._session.post(f"{url}/v1/chat/completions", json=ask.body, headers=headers) as answer:
            if answer.status != 200:
                error = (await answer.json())["error"]
                if error["code"] == "budget_exceeded":
                    account, needed = error["account"], round(Decimal(error["needed_usd"]) * 10**9)
                    self.refusing[account] = min(needed, self.refusing.get(account, needed))
                return str(error["code"] or error["type"])
            if ask.leaves is not None:
                for _ in range(ask.leaves):
                    await answer.content.readline()
                answer.close()
                return "left"
            whole = await answer.read()
            return "cut" if ask.stream and not whole.endswith(b"[DONE]\n\n") else "served"

    async def use_up(self, users: Sequence[tuple[int, str]]) -> None:
        """Small calls of everybody until each is refused for good: what is left then does not pay for the smallest."""
        await asyncio.gather(*(self._use_up(key, user) for key, user in users))

    async def _use_up(self, key: int, user: str) -> None:
        for route in ("retried", "cheap"):
            while (answer := await self.once(Ask(key, user, route, 100, 100))) not in ("budget_exceeded", "forbidden"):
                if answer in ("budget_busy", "store_unavailable"):  # held by a call in flight, or by one whose process died
                    await asyncio.sleep(0.2 + 0.2 * self._dice.random())
