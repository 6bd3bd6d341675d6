"""What makes other gateways overspend or freeze, each as one test: what is spent is read from the provider's own log.

Prices of `one/sim-fast`: 1 USD a million tokens of input, 2 of output, so 1000 and 2000 nano-USD a token.
"""

import asyncio
import calendar
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

import openai
import pytest

from gateway.app import Parts
from gateway.clock import SystemClock
from gateway.core.accounts import Change
from gateway.errors import StoreUnavailable
from gateway.simulator import Fault, FaultRule, Scenario
from gateway.store.memory import MemoryStore
from gateway.store.sqlite import SqliteStore

INPUT, OUTPUT = 1_000, 2_000  # nano-USD a token of one/sim-fast
CENT = 10_000_000

STORES = pytest.mark.parametrize("store", [":memory:", "lockgate.db"], ids=["memory", "sqlite"])


def budget(limit: str, store: str = "lockgate.db", **settings: str) -> str:
    lines = "".join(f'{name} = "{value}"\n' for name, value in {"scope": "all", **settings}.items())
    return f'[store]\npath = "{store}"\n[budgets.b]\nlimit = "{limit}"\n{lines}'


def always(**fault) -> Scenario:
    return Scenario(rules=(FaultRule(Fault(**fault)),))


def billed(*simulators, input_nusd: int = INPUT, output_nusd: int = OUTPUT) -> int:
    """What the provider says that it has worked, times the price."""
    usages = [entry.usage for simulator in simulators for entry in simulator.requests if entry.usage]
    return sum(usage["prompt_tokens"] * input_nusd + usage["completion_tokens"] * output_nusd for usage in usages)


def estimated(house):
    """The ledger's lines: what each cost, and whether that is an estimate."""
    return house.sql("SELECT cost_nusd, estimated FROM ledger ORDER BY seq, n")


async def one_call(client, messages, text="words 50", **asked):
    """A call's answer, or the code of its error."""
    try:
        return await client.chat.completions.create(model="fast", messages=messages(text), **asked)
    except openai.APIStatusError as error:
        return error.code


@STORES
async def test_check_then_act_many_calls_at_once_spend_no_more_than_there_is(house, messages, store):
    """Each of them alone would fit; what they ask for together is ten times what there is."""
    await house.open(config=budget("0.001", store))
    client = house.client()
    said = await asyncio.gather(*[one_call(client, messages, max_tokens=50) for _ in range(60)])
    answered = [each for each in said if not isinstance(each, str)]
    assert {each for each in said if isinstance(each, str)} <= {"budget_busy", "budget_exceeded"}
    assert "budget_busy" in said, "they did not overlap"
    spent = await house.spent("b/all")
    assert spent == billed(house.one) <= 1_000_000
    assert len(answered) == len(house.one.requests) == spent // (50 * OUTPUT + 9 * INPUT)


@STORES
async def test_a_clamped_budget_is_used_up_to_the_last_token_it_pays_for_and_not_beyond(house, messages, store):
    await house.open(config=budget("0.001", store, on_short="clamp"))
    client = house.client()
    while not isinstance(said := await one_call(client, messages, "words 500"), str):
        assert said.usage.completion_tokens == 500 or said.choices[0].finish_reason == "length"
    assert said == "budget_exceeded"
    spent = await house.spent("b/all")
    assert spent == billed(house.one) <= 1_000_000
    assert spent > 750_000


@STORES
@pytest.mark.parametrize("scope", ["user", "session", "run"])
async def test_the_first_calls_of_somebody_unknown_are_bound_although_they_come_at_once(house, messages, store, scope):
    await house.open(config=budget("0.0005", store, scope=scope))
    client = house.client()
    headers = {f"X-Lockgate-{scope.capitalize()}": "ada"}
    said = await asyncio.gather(*[one_call(client, messages, max_tokens=50, extra_headers=headers) for _ in range(30)])
    key_id = house.key.split("_")[1]
    spent = await house.spent(f"b/{key_id}/ada")
    assert 0 < spent == billed(house.one) <= 500_000
    assert sum(isinstance(each, str) for each in said) == 30 - len(house.one.requests)


class Flaky:
    """A journal with a verb that fails so many times before it works."""

    def __init__(self, journal, verb: str, failures: int) -> None:
        self._journal = journal
        self._verb = verb
        self._failures = failures

    def __getattr__(self, name: str):
        return self._attempt if name == self._verb else getattr(self._journal, name)

    async def _attempt(self, *args: object, **kwargs: object) -> object:
        if self._failures:
            self._failures -= 1
            raise StoreUnavailable("the disk is busy")
        return await getattr(self._journal, self._verb)(*args, **kwargs)


class Gated:
    """A journal that writes the intents of calls when it is let, or says that it has when it is let."""

    def __init__(self, journal, *, first: bool) -> None:
        self.asked = asyncio.Event()
        self.let = asyncio.Event()
        self._journal = journal
        self._first = first

    def __getattr__(self, name: str):
        return getattr(self._journal, name)

    async def begin(self, intent: Any) -> Any:
        said = await self._journal.begin(intent) if self._first else None
        self.asked.set()
        await self.let.wait()
        return said or await self._journal.begin(intent)


def made_store(house, store: str) -> MemoryStore | SqliteStore:
    return MemoryStore("tests") if store == ":memory:" else SqliteStore(house.folder / "lockgate.db", "tests")


class Defective:
    """A network in which nothing works as it should."""

    async def send(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise RuntimeError("a defect")

    async def close(self) -> None:
        pass


HASTY = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
[route.deadlines]
headers = "100ms"
idle = "100ms"
total = "400ms"
[route.retry]
attempts = 2
base = "1ms"
"""
KEPT_BACK = """
[[rule]]
id = "no-ember"
phase = "response"
when = 'response.text.contains("ember")'
effect = "deny"
message = "Not this."
"""
REFUSED = '[[rule]]\nid = "no"\nwhen = \'texts.exists(t, t.contains("ember"))\'\neffect = "deny"\nmessage = "Not this."\n'
RATED = '[[rule]]\nid = "slow-down"\neffect = "limit"\nlimit = { requests = 1, per = "24h" }\n'

# How a call may end: what the provider does, how the gateway is set up, and whether it costs anything.
EXITS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "an answer": ({}, {}, True),
    "a refusal by the provider": ({"status": 400}, {}, False),
    "errors of the provider, at every try": ({"status": 500}, {}, False),
    "a lost connection, at every try": ({"reset": True}, {}, True),
    "an answer that cannot be read": ({"garbage": "json"}, {}, True),
    "a silent provider": ({"hang": True}, {"routes": HASTY}, True),
    "a cut answer": ({"cut_after_chunks": 3}, {}, True),
    "a stalled answer": ({"stall_after_chunks": 3}, {"routes": HASTY}, True),
    "an error in the answer": ({"error_event_after_chunks": 3}, {}, True),
    "a rule that keeps the answer": ({}, {"policies": KEPT_BACK}, True),
    "a rule that refuses": ({}, {"policies": REFUSED}, False),
    "a store that fails at the end": ({}, {"failing": ("finish", 2)}, True),
    "a store that fails at the beginning": ({}, {"failing": ("begin", 1)}, False),
    "a store that fails before a second try": ({"status": 500}, {"failing": ("dispatch", 1)}, False),
    "a defect": ({}, {"parts": Parts(transport=Defective())}, False),  # nothing was sent
}


@STORES
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("exit_by", EXITS)
async def test_no_exit_leaks_what_was_set_aside(house, messages, store, stream, exit_by):
    fault, setup, costs = EXITS[exit_by]
    setup = dict(setup)
    if failing := setup.pop("failing", ()):
        made = made_store(house, store)
        flaky: Any = Flaky(made.journal, *failing)
        made.journal = flaky
        setup["parts"] = Parts(store=made)
    await house.open(config=budget("0.10", store), **setup)
    house.one.play(always(**fault))
    with suppress(openai.APIError):
        answer = await house.client().chat.completions.create(model="fast", messages=messages("say an ember"), stream=stream)
        if stream:
            async for _chunk in answer:
                pass
    spent = await house.spent("b/all")
    assert (spent > 0) is costs
    assert spent <= 10 * CENT


@STORES
@pytest.mark.parametrize("gone", ["before the answer", "in the middle of it"])
async def test_a_client_that_leaves_gives_back_what_it_did_not_use_and_pays_what_it_did(house, messages, store, gone):
    """Disconnects pay: the provider has worked, whoever listened."""
    await house.open(config=budget("0.10", store))
    house.one.play(always(hang=True) if gone == "before the answer" else always(stall_after_chunks=6))
    client = house.client()
    if gone == "before the answer":
        waiting = asyncio.create_task(one_call(client, messages, max_tokens=100))
        async with asyncio.timeout(30):
            while not house.one.requests:
                await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    else:
        stream = await client.chat.completions.create(model="fast", messages=messages("words 100"), max_tokens=100, stream=True)
        async for _chunk in stream:
            break
        await stream.close()
    await house.one.finished(1)
    spent = await house.spent("b/all")
    assert 9 * INPUT + OUTPUT <= spent <= 200 * INPUT + 100 * OUTPUT  # the input counts its bytes at the most
    (row,) = await house.calls()
    assert row["outcome"] == "cancelled"
    if store != ":memory:":
        assert estimated(house) == [(spent, 1)]


class Waiting:
    """A network that never gets to a provider, or to its answer."""

    def __init__(self, *, connects: bool) -> None:
        self.asked = asyncio.Event()
        self._connects = connects

    async def send(self, request: Any, **_kwargs: object) -> NoReturn:
        if self._connects:
            request.on_sending()
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("connects", [False, True], ids=["before it was sent", "before it was answered"])
async def test_a_client_that_leaves_pays_for_what_was_sent_and_for_nothing_else(house, messages, connects):
    network: Any = Waiting(connects=connects)
    await house.open(config=budget("0.10", ":memory:"), parts=Parts(transport=network))
    waiting = asyncio.create_task(one_call(house.client(), messages, max_tokens=100))
    await asyncio.wait_for(network.asked.wait(), 30)
    waiting.cancel()
    await asyncio.wait([waiting])
    await house.gateway.app.proxy.idle(20)
    spent = await house.spent("b/all")
    assert (spent >= 100 * OUTPUT) if connects else spent == 0


@STORES
async def test_a_client_that_leaves_in_the_middle_pays_for_the_thinking_that_it_never_saw(house, messages, store):
    await house.open(config=budget("0.10", store))
    client = house.client()
    for _ in range(3):
        stream = await client.chat.completions.create(
            model="fast", messages=messages("words 100"), max_completion_tokens=2000, reasoning_effort="xhigh", stream=True)
        async for _chunk in stream:
            break
        await stream.close()
    await house.one.finished(3)
    thought = sum(entry.billed.completion_tokens for entry in house.one.requests)
    assert thought > 3 * 100
    assert await house.spent("b/all") >= thought * OUTPUT


class Torn:
    """A journal whose first outcome waits, and then could not be written."""

    def __init__(self, journal) -> None:
        self.asked = asyncio.Event()
        self.let = asyncio.Event()
        self._journal = journal

    def __getattr__(self, name: str):
        return getattr(self._journal, name)

    async def finish(self, record: Any, *, response: bytes | None, result: Any = None) -> Any:
        if not self.asked.is_set():
            self.asked.set()
            await self.let.wait()
            raise StoreUnavailable("the disk is busy")
        return await self._journal.finish(record, response=response, result=result)


@STORES
async def test_a_client_that_leaves_while_its_outcome_waits_for_a_disk_that_fails_leaves_no_money_behind(house, messages, store):
    """Nobody waits for that write any more: somebody has to see to it that it is done."""
    made = made_store(house, store)
    torn: Any = Torn(made.journal)
    made.journal = torn
    await house.open(config=budget("0.10", store), parts=Parts(store=made))
    waiting = asyncio.create_task(one_call(house.client(), messages))
    await asyncio.wait_for(torn.asked.wait(), 30)
    waiting.cancel()
    await asyncio.wait([waiting])
    await house.gateway.app.proxy.idle(20)
    torn.let.set()
    await house.gateway.app.proxy.settler.drained()
    assert await house.spent("b/all") > 0


@STORES
@pytest.mark.parametrize("first", [False, True], ids=["before it is on record", "when it just is"])
async def test_a_client_that_leaves_while_its_call_is_written_down_holds_no_money(house, messages, store, first):
    made = made_store(house, store)
    gated: Any = Gated(made.journal, first=first)
    made.journal = gated
    await house.open(config=budget("0.10", store), parts=Parts(store=made))
    waiting = asyncio.create_task(one_call(house.client(), messages))
    await asyncio.wait_for(gated.asked.wait(), 30)
    waiting.cancel()
    await asyncio.wait([waiting])
    await house.gateway.app.proxy.idle(20)
    gated.let.set()
    assert await house.spent("b/all") == 0
    assert house.one.requests == []
    if first and store != ":memory:":
        assert house.sql("SELECT how, cost_nusd FROM settlements") == [("released", 0)]


async def test_a_gateway_that_stops_settles_what_it_had_under_way(house, messages):
    await house.open(config=budget("0.10") + '[server]\ndrain_timeout = "10ms"\n')
    house.one.play(always(hang=True))
    waiting = asyncio.create_task(one_call(house.client(), messages, max_tokens=10))
    async with asyncio.timeout(30):
        while not house.one.requests:
            await asyncio.sleep(0)
        await house.gateway.app.stop()
        assert await waiting == "overloaded"
    house.assert_doctor_is_content()
    assert house.sql("SELECT posted_nusd > 0, pending_nusd FROM balances") == [(1, 0)]


@STORES
@pytest.mark.parametrize("why", ["the money is not enough", "a rate is used up"])
async def test_a_call_that_was_never_let_through_leaves_nothing_behind(house, messages, store, why):
    short = why == "the money is not enough"
    await house.open(config=budget("0.00001" if short else "1", store), policies="" if short else RATED)
    said = [await one_call(house.client(), messages, "say one", max_tokens=20) for _ in range(3)]
    refused = "budget_exceeded" if short else "rate_limited"
    assert [each for each in said if isinstance(each, str)] == [refused] * (3 if short else 2)
    assert await house.spent("b/all") == billed(house.one)
    assert len(house.one.requests) == (0 if short else 1)


@STORES
async def test_a_call_that_asks_for_the_worst_case_does_not_freeze_the_budget(house, messages, slow, store):
    """It gets what there is; who comes meanwhile is told to wait, and what it did not use is there again."""
    await house.open(config=slow.config + budget("0.01", store))
    client = house.client()
    greedy = asyncio.create_task(client.chat.completions.create(model="slow", messages=messages("hi"), max_tokens=1_000_000))
    await asyncio.wait_for(slow.arrived.acquire(), 30)
    assert 4_000 < slow.bodies[0]["max_tokens"] < 5_000
    assert await one_call(client, messages, "say one") == "budget_busy"
    slow.go.set()
    await greedy
    assert not isinstance(await one_call(client, messages, "say one"), str)
    assert await house.spent("b/all") == 10 * INPUT + 20 * OUTPUT + billed(house.one)


async def test_a_stream_without_usage_is_estimated_and_never_free(house, messages):
    await house.open(config=budget("0.10"))
    house.one.play(always(no_usage=True))
    stream = await house.client().chat.completions.create(model="fast", messages=messages("words 40"), max_tokens=60, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    spent = await house.spent("b/all")
    assert spent >= 9 * INPUT + 40 * OUTPUT  # at the least what it really was
    assert spent <= 200 * INPUT + len(text) * OUTPUT
    assert estimated(house) == [(spent, 1)]
    (attempt,) = (await house.call((await house.calls())[0]["id"]))["attempts"]
    assert attempt["usage"]["estimated"] is True


@STORES
async def test_a_plain_answer_without_usage_is_estimated_and_never_free(house, messages, store):
    await house.open(config=budget("0.10", store))
    house.one.play(always(no_usage=True))
    assert not isinstance(await one_call(house.client(), messages, "words 40", max_tokens=60), str)
    assert await house.spent("b/all") >= 9 * INPUT + 40 * OUTPUT


@STORES
async def test_a_fallback_is_inside_the_same_reservation_and_both_attempts_are_in_the_ledger(house, messages, store):
    await house.open(config=budget("0.10", store))
    house.one.play(always(reset=True))  # sent, and nobody knows whether it was worked on
    answer = await house.client().chat.completions.create(model="backed-up", messages=messages("words 20"), max_tokens=100)
    assert answer.choices[0].message.content
    second = billed(house.two, input_nusd=100, output_nusd=200)
    spent = await house.spent("b/all")
    assert 100 * 20_000 + second <= spent <= 100 * 20_000 + 200 * 10_000 + second
    if store != ":memory:":
        assert [flag for _cost, flag in estimated(house)] == [1, 0]
        assert estimated(house)[1][0] == second
        assert sum(cost for cost, _flag in estimated(house)) == spent


@STORES
async def test_a_fallback_that_the_money_no_longer_pays_for_is_not_sent(house, messages, store):
    """What the first attempt may have cost is spent: there is no second cap for the second attempt."""
    house.write("routes/twin.toml", '[[route]]\nname = "twin"\n[[route.targets]]\nprovider = "one"\nmodel = "sim-fast"\n[[route.targets]]\n'
                'provider = "two"\nmodel = "sim-fast"\n[route.retry]\nattempts = 1\n')
    prices = '[prices."two/sim-fast"]\ninput = "1.00"\noutput = "2.00"\n'
    await house.open(config=prices + budget("0.0003", store, on_short="deny"))  # one attempt may cost 0.00023
    house.one.play(always(reset=True))
    with pytest.raises(openai.RateLimitError) as caught:
        await house.client().chat.completions.create(model="twin", messages=messages("words 20"), max_tokens=70)
    assert caught.value.code == "budget_exceeded"
    assert house.two.requests == []
    assert 140_000 < await house.spent("b/all") <= 300_000


@STORES
async def test_retries_of_one_target_are_attempts_inside_the_reservation_too(house, messages, store):
    await house.open(config=budget("0.10", store))
    house.one.play(Scenario(rules=(FaultRule(Fault(reset=True, times=1)),)))
    assert not isinstance(await one_call(house.client(), messages, "words 20", max_tokens=30), str)
    spent = await house.spent("b/all")
    assert billed(house.one) + 30 * OUTPUT <= spent <= billed(house.one) + 30 * OUTPUT + 200 * INPUT


async def test_an_attempt_that_the_provider_refused_costs_nothing(house, messages):
    await house.open(config=budget("0.10"))
    house.one.play(always(status=503))
    await house.client().chat.completions.create(model="backed-up", messages=messages("words 20"), max_tokens=100)
    assert await house.spent("b/all") == billed(house.two, input_nusd=100, output_nusd=200)
    assert len(estimated(house)) == 1


@STORES
async def test_cached_tokens_are_billed_once_at_their_own_price(house, messages, store):
    cached = '[prices."two/cached"]\ninput = "1.00"\ncached_input = "0.10"\noutput = "2.00"\n'
    house.write("routes/cached.toml", '[[route]]\nname = "cached"\n[[route.targets]]\nprovider = "two"\nmodel = "cached"\n')
    await house.open(config=cached + budget("0.10", store))
    asked = [{"role": "system", "content": "a b c d e f"}, *messages("say one two")]
    answer = await house.client().chat.completions.create(model="cached", messages=asked, prompt_cache_key="k", max_tokens=10)
    told = answer.usage.prompt_tokens_details.cached_tokens
    assert told == 10
    fresh = answer.usage.prompt_tokens - told
    assert await house.spent("b/all") == fresh * 1_000 + told * 100 + answer.usage.completion_tokens * 2_000


@STORES
@pytest.mark.parametrize("how", ["a limit for the account", "a limit for the budget", "a raise"])
async def test_a_raised_limit_counts_from_the_next_call(house, messages, store, how):
    await house.open(config=budget("0.0001", store))
    client = house.client()
    assert await one_call(client, messages, "words 60", max_tokens=60) == "budget_exceeded"
    app = house.gateway.app
    now_ns = app.clock.now_ns()
    subject = "" if how == "a limit for the budget" else "all"
    raised = Change(0, now_ns, "ada", "raise", "b", subject, limit_nusd=CENT, until_ns=now_ns + 3600 * 10**9)
    await app.store.budgets.change(raised if how == "a raise" else replace(raised, kind="set", until_ns=None))
    assert not isinstance(await one_call(client, messages, "words 60", max_tokens=60), str)


class Turned(SystemClock):
    """The real clock, but for the time of day, which the test turns."""

    def __init__(self, *time: int) -> None:
        self.turn(*time)

    def turn(self, *time: int) -> None:
        self._now_ns = calendar.timegm(time) * 10**9

    def now_ns(self) -> int:
        return self._now_ns


@STORES
@pytest.mark.parametrize("window", ["hour", "day", "week", "month", "60m"])
async def test_what_is_given_back_goes_into_the_window_that_it_was_taken_from(house, messages, slow, store, window):
    """A call begins before midnight and ends after: its money is never seen in the new window, neither as spent nor as a gift."""
    clock = Turned(2026, 5, 31, 23, 59, 59)
    await house.open(config=slow.config + budget("0.01", store, window=window), parts=Parts(clock=clock))
    client = house.client()
    late = asyncio.create_task(client.chat.completions.create(model="slow", messages=messages("hi"), max_tokens=1_000_000))
    await asyncio.wait_for(slow.arrived.acquire(), 30)
    assert await one_call(client, messages, "say one") == "budget_busy"
    clock.turn(2026, 6, 1, 1, 2, 0)  # also past the last step of the rolling window
    assert not isinstance(await one_call(client, messages, "say one"), str)
    first = await house.gateway.app.store.budgets.windows("b", "all", 10)
    slow.go.set()
    await late
    assert await house.spent("b/all") == billed(house.one)
    newest, oldest = await house.gateway.app.store.budgets.windows("b", "all", 10)
    assert (newest["posted_nusd"], newest["pending_nusd"]) == (billed(house.one), 0)
    assert (oldest["posted_nusd"], oldest["pending_nusd"]) == (10 * INPUT + 20 * OUTPUT, 0)
    assert first[1]["pending_nusd"] > 9_000_000
    assert newest["window_ns"] > oldest["window_ns"]


@STORES
@pytest.mark.parametrize("change", ["it has another window", "it is gone"])
async def test_a_budget_that_changes_under_a_call_is_settled_where_it_was_reserved(house, messages, slow, store, change):
    await house.open(config=slow.config + budget("0.01", store, window="day"))
    waiting = asyncio.create_task(house.client().chat.completions.create(model="slow", messages=messages("hi"), max_tokens=100))
    await asyncio.wait_for(slow.arrived.acquire(), 30)
    config = house.folder / "config.toml"
    written = config.read_text()
    config.write_text(written.replace('window = "day"', 'window = "month"') if change == "it has another window" else written.partition("[budgets.b]")[0])
    await house.gateway.reload()
    slow.go.set()
    await waiting
    await house.spent("b/all")
    (window,) = await house.gateway.app.store.budgets.windows("b", "all", 10)
    assert (window["span"], window["posted_nusd"], window["pending_nusd"]) == ("day UTC", 10 * INPUT + 20 * OUTPUT, 0)
