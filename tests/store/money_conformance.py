"""What every store promises about money and rates. Inherit `MoneyConformance` and give it a `store` fixture: an open, empty store.

Most needs are one nano-USD a token with no input (`samples.tokens`), so that an amount is a number of tokens too.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from gateway.call import Origin, Outcome, Principal, Usage
from gateway.core.accounts import Change, Subjects
from gateway.core.budget import Balance, Granted, Need, Short
from gateway.core.rate import Spent, Take
from gateway.core.windows import Window
from gateway.errors import StoreError
from gateway.store.ledger_rows import COST_FIELDS, COST_GROUPS, WINDOW_FIELDS
from gateway.store.protocol import AccountFilter, Admitted, Booked, CallFilter, Store

BERLIN_DAY = Window("day", "Europe/Berlin")
TO_MIDNIGHT_S = 28_000  # from `NOW_NS` to midnight in Berlin
HOUR = Window("rolling", length_ns=3600 * 10**9)
FOREVER_NS = 2**62


def amounts(answer: object) -> tuple[int, int | None]:
    """What was granted: all that is set aside, and the tokens."""
    granted = answer.granted if isinstance(answer, Admitted) else answer
    assert isinstance(granted, Granted), granted
    return granted.amount_nusd, granted.units


def refused(answer: object) -> tuple[str, str, int | None, int, int, int]:
    """A refusal: account, why, limit, used, reserved, needed."""
    assert isinstance(answer, Short), answer
    account, held = answer.holding.account, answer.holding.counted
    return account.name, answer.why, account.limit_nusd, held.posted, held.pending, answer.needed_nusd


def change(kind: str, name: str = "team-cap", subject: str = "", **given: Any) -> Change:
    return Change(0, 5, "ada", kind, name, subject, **given)  # type: ignore[arg-type]


def take(rule: str = "r", measure: str = "requests", most: int = 3, amount: int = 1, whose: str = "key=k", period_s: int = 60) -> Take:
    return Take(rule, whose, measure, most, 0 if measure == "concurrent" else period_s * 10**9, amount)  # type: ignore[arg-type]


class MoneyConformance:
    """Budgets and rates, through the protocol alone."""

    async def test_a_call_sets_the_same_amount_aside_on_every_account_that_binds_it(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(), samples.budget("one-key", "key", 5000), samples.budget("other", "team", of=("red",)))
        answer = await till.begin(1, 300)
        assert amounts(answer) == (300, 300)
        assert [(each.account.name, each.counted, each.window_ns, each.ends_ns) for each in answer.standings] == [
            ("team-cap/blue", Balance(0, 300), 0, None), ("one-key/key000000001", Balance(0, 300), 0, None)]
        assert (await till.held("team-cap"), await till.held("one-key"), await till.held("other")) == (
            [("blue", 0, 300)], [("key000000001", 0, 300)], [])
        booked = await till.finish(1, 120)
        assert [(each.account.name, each.counted) for each in booked.standings] == [
            ("team-cap/blue", Balance(120, 0)), ("one-key/key000000001", Balance(120, 0))]
        assert (booked.crossed, booked.overrun_nusd) == ((), 0)
        assert (await till.held("team-cap"), await till.held("one-key")) == ([("blue", 120, 0)], [("key000000001", 120, 0)])

    async def test_where_one_of_several_accounts_is_short_nothing_happens_on_any(self, store: Store, samples: ModuleType) -> None:
        """Check-then-act, and a leak on one of many exits: neither the call nor its rates nor the other accounts may keep a trace."""
        till = samples.Till(store, samples.budget("wide", "all", 10_000), samples.budget(), samples.budget("narrow", "key", 50))
        await till.spend(1, 50)
        once = take(most=1)
        assert refused(await till.begin(2, 20, takes=(once,))) == ("narrow/key000000001", "exceeded", 50, 50, 0, 1)
        assert await store.journal.call(samples.call_id(2)) is None
        assert [await till.held(name) for name in ("wide", "team-cap", "narrow")] == [
            [("all", 50, 0)], [("blue", 50, 0)], [("key000000001", 50, 0)]]
        assert await store.budgets.take((once,), now_ns=samples.NOW_NS) is None
        assert amounts(await till.begin(2, 20, key="another")) == (20, 20)  # the id is free for a call that does begin

    async def test_the_first_calls_of_an_unknown_subject_cannot_spend_more_than_its_limit(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget("per-user", "user", 100, on_short="deny"))
        answers = await asyncio.gather(*(till.begin(n, 30, user="key000000001/new") for n in range(20)))
        assert [isinstance(each, Admitted) for each in answers].count(True) == 3
        assert {refused(each) for each in answers if isinstance(each, Short)} == {
            ("per-user/key000000001/new", "busy", 100, 0, 90, 30)}
        assert await till.held("per-user") == [("key000000001/new", 0, 90)]

    async def test_short_money_shortens_the_answer_down_to_what_is_worth_a_call(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100, least=10))
        need = Need(5, 2000, 40)  # 5 for the input, 2 a token
        await till.spend(1, 37)
        assert amounts(await till.begin(2, need)) == (63, 29)
        await till.finish(2, 38)
        assert amounts(await till.begin(3, need)) == (25, 10)
        await till.finish(3, 1)
        assert refused(await till.begin(4, need)) == ("team-cap/blue", "exceeded", 100, 76, 0, 25)
        assert amounts(await till.begin(5, Need(5, 2000, 9))) == (23, 9)  # it asks for less than the least itself

    @pytest.mark.parametrize("how", ["deny", "rigid"])
    async def test_what_may_not_be_shortened_is_refused(self, store: Store, samples: ModuleType, how: str) -> None:
        till = samples.Till(store, samples.budget(limit=100, on_short="deny" if how == "deny" else "clamp"))
        assert refused(await till.begin(1, samples.tokens(101, rigid=how == "rigid"))) == ("team-cap/blue", "exceeded", 100, 0, 0, 101)
        assert amounts(await till.begin(1, samples.tokens(100, rigid=how == "rigid"))) == (100, 100)

    async def test_of_several_accounts_the_tightest_says_how_long_the_answer_may_be(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(
            store, samples.budget("a", "all", 500), samples.budget("b", "team", 70), samples.budget("c", "key", 90),
            samples.budget("d", "org", None, soft_nusd=10))
        assert amounts(await till.begin(1, 400)) == (70, 70)
        assert [await till.held(name) for name in "abcd"] == [
            [("all", 0, 70)], [("blue", 0, 70)], [("key000000001", 0, 70)], [("acme", 0, 70)]]

    async def test_money_that_is_held_by_calls_in_flight_is_busy_and_money_that_is_spent_is_exceeded(
        self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100, on_short="deny"))
        await till.spend(1, 30)
        await till.begin(2, 60)
        assert refused(await till.begin(3, 20)) == ("team-cap/blue", "busy", 100, 30, 60, 20)
        assert refused(await till.begin(4, 71)) == ("team-cap/blue", "exceeded", 100, 30, 60, 71)
        await till.finish(2, 10)
        assert amounts(await till.begin(3, 20)) == (20, 20)

    async def test_two_budgets_of_one_scope_are_two_accounts(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget("day", window=BERLIN_DAY, limit=50), samples.budget("ever", limit=70))
        await till.spend(1, 50)
        assert refused(await till.begin(2, 10))[:2] == ("day/blue", "exceeded")
        assert amounts(await till.begin(2, 50, at_s=TO_MIDNIGHT_S)) == (20, 20)
        assert refused(await till.begin(3, 10, at_s=TO_MIDNIGHT_S)) == ("ever/blue", "busy", 70, 50, 20, 1)

    async def test_the_same_name_under_two_keys_is_two_subjects_and_of_several_tags_each_binds(
        self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget("u", "user", 10), samples.budget("t", "tag", 15, of=("env=*",)))
        assert amounts(await till.begin(1, 10, user="key1/ann", tag=("env=a", "env=b", "job=x"))) == (10, 10)
        assert amounts(await till.begin(2, 10, user="key2/ann", tag="env=b")) == (5, 5)
        assert amounts(await till.begin(3, 5, user="key2/ann", tag="env=a")) == (5, 5)
        assert (await till.held("u"), await till.held("t")) == (
            [("key1/ann", 0, 10), ("key2/ann", 0, 10)], [("env=a", 0, 15), ("env=b", 0, 15)])

    async def test_a_further_attempt_sets_aside_what_is_missing_and_no_more(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100))
        await till.begin(1, 30)
        assert amounts(await till.again(1, 2, 25, spent=30)) == (55, 25)
        assert await till.held() == [("blue", 0, 55)]
        assert amounts(await till.again(1, 3, 5, spent=40)) == (55, 5)  # what is set aside reaches
        assert amounts(await till.again(1, 4, 90, spent=41)) == (100, 59)
        booked = await till.finish(1, 30, 10, 1, 59)
        assert (booked.overrun_nusd, await till.held()) == (0, [("blue", 100, 0)])

    async def test_a_further_attempt_that_the_money_does_not_reach_for_leaves_nothing(self, store: Store, samples: ModuleType) -> None:
        """Fallbacks outside the cap: the next target's price counts like the first one's."""
        till = samples.Till(store, samples.budget(limit=100, on_short="deny"))
        await till.begin(1, 30)
        assert refused(await till.again(1, 2, 80, spent=30)) == ("team-cap/blue", "exceeded", 100, 0, 30, 80)
        await till.begin(2, 50)
        assert refused(await till.again(1, 2, 60, spent=30)) == ("team-cap/blue", "busy", 100, 0, 80, 60)
        call = await store.journal.call(samples.call_id(1))
        assert call is not None
        assert ([tried["n"] for tried in call["attempts"]], await till.held()) == ([1], [("blue", 0, 80)])
        assert amounts(await till.again(1, 2, 20, spent=30)) == (50, 20)
        with pytest.raises(StoreError, match="already recorded"):
            await till.again(1, 2, 20, spent=30)
        assert await till.held() == [("blue", 0, 100)]

    async def test_a_stream_that_runs_on_sets_more_aside_while_there_is_some(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100), samples.budget("k", "key", 80))
        await till.begin(1, 30)
        assert amounts(await till.extend(1, 50)) == (50, 50)
        assert amounts(await till.extend(1, 90)) == (80, 80)
        assert amounts(await till.extend(1, 90)) == (80, 80)
        assert (await till.held(), await till.held("k")) == ([("blue", 0, 80)], [("key000000001", 0, 80)])
        assert amounts(await till.begin(2, 30, key="k2")) == (20, 20)
        assert amounts(await till.extend(1, 40, spent=50)) == (80, 30)
        await till.finish(1, 50, 30)
        assert (await till.held(), await till.held("k")) == ([("blue", 80, 20)], [("k2", 0, 20), ("key000000001", 80, 0)])

    async def test_nothing_is_set_aside_for_a_call_that_is_not_under_way(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget())
        with pytest.raises(StoreError):
            await till.extend(1, 10)
        await till.spend(1, 10)
        with pytest.raises(StoreError):
            await till.extend(1, 10)
        with pytest.raises(StoreError):
            await till.again(1, 2, 10, spent=10)
        assert await till.held() == [("blue", 10, 0)]

    async def test_a_second_finish_books_nothing(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget())
        await till.spend(1, 10)
        with pytest.raises(StoreError):
            await till.finish(1, 20)
        with pytest.raises(StoreError):
            await till.begin(1, 20)
        assert await till.held() == [("blue", 10, 0)]
        assert [row["cost_nusd"] for row in await store.budgets.costs("team", 0, FOREVER_NS, 10)] == [10]

    async def test_a_settlement_lands_in_the_window_of_its_reservation(self, store: Store, samples: ModuleType) -> None:
        """A refund into the wrong window: the new day must neither pay for nor gain by the old one's calls."""
        till = samples.Till(store, samples.budget(limit=100, window=BERLIN_DAY))
        assert amounts(await till.begin(1, 60, at_s=TO_MIDNIGHT_S - 1)) == (60, 60)
        answer = await till.begin(2, 100, at_s=TO_MIDNIGHT_S)
        assert amounts(answer) == (100, 100)
        midnight_ns = samples.at_ns(TO_MIDNIGHT_S)
        assert [(each.window_ns, each.ends_ns) for each in answer.standings] == [(midnight_ns, midnight_ns + 86_400 * 10**9)]
        assert amounts(await till.extend(1, 80)) == (80, 80)
        assert amounts(await till.again(1, 2, 90, spent=15, at_s=TO_MIDNIGHT_S + 5)) == (100, 85)
        booked = await till.finish(1, 15, 25, at_s=TO_MIDNIGHT_S + 9)
        assert [(each.counted, each.window_ns, each.ends_ns) for each in booked.standings] == [
            (Balance(40, 0), midnight_ns - 86_400 * 10**9, midnight_ns)]
        assert await till.held() == [("blue", 40, 0), ("blue", 0, 100)]

    async def test_a_clock_that_steps_back_over_the_edge_of_a_day_finds_the_old_day(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100, window=BERLIN_DAY))
        await till.spend(1, 60, at_s=TO_MIDNIGHT_S - 1)
        await till.spend(2, 90, at_s=TO_MIDNIGHT_S)
        assert amounts(await till.begin(3, 100, at_s=TO_MIDNIGHT_S - 1)) == (40, 40)
        assert amounts(await till.begin(4, 100, at_s=TO_MIDNIGHT_S + 1)) == (10, 10)
        assert await till.held() == [("blue", 60, 40), ("blue", 90, 10)]

    async def test_a_day_of_25_hours_is_one_window(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100, window=BERLIN_DAY))
        begins_s = (1_792_879_200 * 10**9 - samples.NOW_NS) // 10**9  # 2026-10-25 00:00 in Berlin, whose clocks go back at 03:00
        for n, hour in enumerate((0, 2, 3, 24)):
            await till.spend(n, 25, at_s=begins_s + hour * 3600)
        assert refused(await till.begin(9, 1, at_s=begins_s + 25 * 3600 - 1))[:2] == ("team-cap/blue", "exceeded")
        assert amounts(await till.begin(9, 1, at_s=begins_s + 25 * 3600)) == (1, 1)

    async def test_money_of_a_rolling_window_comes_back_late_and_never_early(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100, window=HOUR))
        await till.spend(1, 60)
        await till.spend(2, 30, at_s=1800)
        assert amounts(await till.begin(3, 50, at_s=3600)) == (10, 10)
        await till.finish(3, 10, at_s=3600)
        assert refused(await till.begin(4, 50, at_s=3639))[:2] == ("team-cap/blue", "exceeded")  # 20 s into its minute it was spent
        answer = await till.begin(4, 100, at_s=3640)
        assert amounts(answer) == (60, 60)
        assert [(each.counted, each.window_ns, each.ends_ns) for each in answer.standings] == [
            (Balance(40, 60), samples.at_ns(3640), samples.at_ns(3640 + 61 * 60))]
        assert refused(await till.begin(5, 1, at_s=0)) == ("team-cap/blue", "exceeded", 100, 100, 60, 1)  # what lies ahead counts

    async def test_a_raised_limit_counts_from_the_next_call(self, store: Store, samples: ModuleType) -> None:
        """A raised limit that a cache hides."""
        till = samples.Till(store, samples.budget(limit=100))
        await till.spend(1, 100)
        assert refused(await till.begin(2, 50))[:3] == ("team-cap/blue", "exceeded", 100)
        await store.budgets.change(change("set", subject="blue", limit_nusd=130))
        assert amounts(await till.begin(2, 50)) == (30, 30)
        await store.budgets.change(change("set", limit_nusd=1000))  # an account's own limit goes before that of all
        assert refused(await till.begin(3, 50))[:3] == ("team-cap/blue", "busy", 130)
        assert amounts(await till.begin(3, 50, team="red")) == (50, 50)
        await store.budgets.change(change("remove", subject="blue"))
        assert amounts(await till.begin(4, 50)) == (50, 50)

    async def test_a_raise_ends_when_it_was_said_to(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100))
        await till.spend(1, 100)
        await store.budgets.change(change("raise", subject="blue", limit_nusd=20, until_ns=samples.at_ns(10)))
        await store.budgets.change(change("raise", limit_nusd=5, until_ns=samples.at_ns(20)))
        await till.spend(2, 25, at_s=9)
        assert refused(await till.begin(3, 1, at_s=10)) == ("team-cap/blue", "exceeded", 105, 125, 0, 1)
        assert refused(await till.begin(3, 1, at_s=20)) == ("team-cap/blue", "exceeded", 100, 125, 0, 1)

    async def test_a_limit_may_be_lowered_under_what_is_spent(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100))
        await till.spend(1, 40)
        await till.begin(2, 50)
        await store.budgets.change(change("set", limit_nusd=30))
        assert refused(await till.begin(3, 1)) == ("team-cap/blue", "exceeded", 30, 40, 50, 1)
        await till.finish(2, 50)
        standings = await store.budgets.standing(till.book, {"team": ("blue",)}, now_ns=samples.NOW_NS)
        assert [(each.account.limit_nusd, each.counted) for each in standings] == [(30, Balance(90, 0))]

    async def test_what_is_free_goes_on_where_nothing_is_left(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=10, on_short="deny"), samples.budget("key", "key", 0))
        assert amounts(await till.begin(1, Need(0, 0, 500))) == (0, 500)
        assert refused(await till.begin(2, 1)) == ("key/key000000001", "exceeded", 0, 0, 0, 1)
        await till.finish(1, 0)
        assert await store.budgets.costs("team", 0, FOREVER_NS, 10) == []

    async def test_what_has_no_price_is_refused_where_a_limit_binds_it_and_nowhere_else(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(), samples.budget("watched", "key", None, soft_nusd=5))
        unpriced = Need(0, unpriced=True, most=100)
        assert refused(await till.begin(1, unpriced)) == ("team-cap/blue", "unpriced", 1000, 0, 0, 0)
        assert amounts(await till.begin(1, unpriced, team=())) == (0, None)
        booked = await till.finish(1, None)
        assert (booked.overrun_nusd, [each.counted for each in booked.standings]) == (0, [Balance()])

    async def test_the_soft_limit_is_crossed_once(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100, soft_nusd=50), samples.budget("watched", "key", None, soft_nusd=60))
        assert [each.name for each in (await till.spend(1, 49)).crossed] == []
        assert [each.name for each in (await till.spend(2, 1)).crossed] == ["team-cap/blue"]
        assert [each.name for each in (await till.spend(3, 10)).crossed] == ["watched/key000000001"]
        assert [each.name for each in (await till.spend(4, 10)).crossed] == []

    async def test_a_call_that_cost_more_than_was_set_aside_is_booked_in_full_and_told_of(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100))
        await till.begin(1, 80)
        booked = await till.finish(1, 50, 70)
        assert (booked.overrun_nusd, await till.held()) == (40, [("blue", 120, 0)])
        assert [row["over_nusd"] for row in await store.budgets.windows("team-cap", "blue", 1)] == [40]
        assert refused(await till.begin(2, 1)) == ("team-cap/blue", "exceeded", 100, 120, 0, 1)

    async def test_what_was_never_sent_gives_everything_back(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget())
        await till.begin(1, 80)
        booked = await till.finish(1, outcome=Outcome.CANCELLED, status=499, usage=None)
        assert ([each.counted for each in booked.standings], await till.held()) == ([Balance()], [("blue", 0, 0)])
        assert await store.budgets.costs("team", 0, FOREVER_NS, 10) == []

    async def test_a_call_that_no_budget_binds_has_its_lines_in_the_ledger_all_the_same(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store)
        assert await till.begin(1, 80) == Admitted(Granted(80, None))
        assert amounts(await till.again(1, 2, 50, spent=10)) == (80, None)
        assert await till.finish(1, 10, 90) == Booked()
        assert [row["cost_nusd"] for row in await store.budgets.costs("model", 0, FOREVER_NS, 10)] == [90, 10]

    async def test_a_configured_budget_hides_one_of_its_name_that_was_set(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store)
        await store.budgets.change(change("set", budget=samples.budget(limit=10)))
        await store.budgets.change(change("set", "other", budget=samples.budget("other", "key", 20)))
        assert amounts(await till.begin(1, 50)) == (10, 10)
        configured = samples.Till(store, samples.budget(limit=100))
        assert amounts(await configured.begin(2, 50)) == (10, 10)  # `other` binds it still, and has that much left
        await store.budgets.change(change("remove", "other"))
        assert amounts(await configured.begin(3, 500)) == (80, 80)
        await store.budgets.change(change("remove"))
        assert amounts(await samples.Till(store).begin(4, 500)) == (500, None)

    async def test_names_that_are_no_text_are_accounts_too(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget("u", "user", 10))
        hostile = "key1/\udcff\x00'; DROP TABLE balances --"
        assert amounts(await till.begin(1, 6, user=hostile)) == (6, 6)
        assert amounts(await till.begin(2, 6, user=hostile)) == (4, 4)
        assert await till.held("u") == [("key1/?\x00'; DROP TABLE balances --", 0, 10)]
        place = take(measure="concurrent", most=1, whose="user=\udcff'; DROP TABLE rates --")
        assert isinstance(await till.begin(3, 1, takes=(place,)), Admitted)
        assert await till.begin(4, 1, takes=(place,)) == Spent(place, 0)
        named = await store.budgets.change(replace(change("raise", limit_nusd=1, until_ns=9), author="\udcff", note="'; --\ud800"))
        assert (named.author, named.note, list(await store.budgets.changes())) == ("?", "'; --?", [named])

    async def test_an_amount_that_no_number_holds_is_refused_and_leaves_nothing(self, store: Store, samples: ModuleType) -> None:
        """Where no limit binds, a body may ask for any number of tokens."""
        till = samples.Till(store, samples.budget("key", "key", None, soft_nusd=5), samples.budget(limit=None, soft_nusd=5))
        assert amounts(await till.begin(1, 2**62 - 10, key="other")) == (2**62 - 10, None)
        place = take(measure="concurrent", most=1)
        for most in (11, 10**30):
            with pytest.raises(StoreError, match="team-cap/blue"):
                await till.begin(2, most, takes=(place,))
            with pytest.raises(StoreError, match="set aside"):
                await till.extend(1, 2**62 - 10 + most)
        assert await store.journal.call(samples.call_id(2)) is None
        assert isinstance(await till.begin(2, 10, takes=(place,)), Admitted)
        await till.finish(1, 10)
        await till.finish(2, 7)
        assert (await till.held(), await till.held("key")) == ([("blue", 17, 0)], [("key000000001", 7, 0), ("other", 10, 0)])

    async def test_a_rate_of_requests_says_exactly_when_to_come_back(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store)
        rate = take(most=3)  # one each 20 s
        for n in range(3):
            assert isinstance(await till.begin(n, 1, takes=(rate,)), Admitted)
        assert await till.begin(3, 1, at_s=5, takes=(rate,)) == Spent(rate, 15 * 10**9)
        assert await till.begin(3, 1, at_s=19.999999999, takes=(rate,)) == Spent(rate, 1)
        assert isinstance(await till.begin(3, 1, at_s=20, takes=(rate,)), Admitted)
        assert isinstance(await till.begin(4, 1, at_s=20, takes=(replace(rate, whose="key=l"),)), Admitted)

    async def test_of_several_rates_all_are_taken_or_none(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=10))
        wide, narrow = take("wide", most=2), take("narrow", most=1)
        assert isinstance(await till.begin(1, 5, takes=(wide, narrow)), Admitted)
        assert await till.begin(2, 5, takes=(wide, narrow)) == Spent(narrow, 60 * 10**9)
        assert (await store.journal.call(samples.call_id(2)), await till.held()) == (None, [("blue", 0, 5)])
        assert isinstance(await till.begin(2, 5, takes=(wide,)), Admitted)
        assert await till.begin(3, 5, takes=(wide,)) == Spent(wide, 30 * 10**9)  # though the money is short too

    async def test_two_takes_of_one_rate_count_together(self, store: Store, samples: ModuleType) -> None:
        rate, slots = take(most=3), take("s", "concurrent", 1)
        assert await store.budgets.take((rate, rate), now_ns=samples.NOW_NS) is None
        assert await store.budgets.take((rate, rate), now_ns=samples.NOW_NS) == Spent(rate, 20 * 10**9)
        assert await samples.Till(store).begin(1, 1, takes=(slots, slots)) == Spent(slots, 0)
        assert await store.budgets.take((rate,), now_ns=samples.NOW_NS) is None

    async def test_a_place_is_given_back_when_the_call_ends_however_it_ends(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store)
        place = take(measure="concurrent", most=2)
        assert isinstance(await till.begin(1, 1, takes=(place,)), Admitted)
        assert isinstance(await till.begin(2, 1, takes=(place,)), Admitted)
        assert await till.begin(3, 1, takes=(place,)) == Spent(place, 0)
        await till.finish(1, outcome=Outcome.CANCELLED, status=499, usage=None)
        assert isinstance(await till.begin(3, 1, takes=(place,)), Admitted)
        with pytest.raises(StoreError):
            await till.finish(1, 1)
        assert await till.begin(4, 1, takes=(place,)) == Spent(place, 0)

    @pytest.mark.parametrize(("used", "wait_s"), [((100,), 60), ((40,), 24), ((10, 20), 18), ((), 0)])
    async def test_tokens_are_corrected_when_they_are_known(
        self, store: Store, samples: ModuleType, used: tuple[int, ...], wait_s: int) -> None:
        """Taken as 70 of 100 a minute; what the attempts used stands in the end, and nothing where nothing was sent."""
        till = samples.Till(store)
        first, everything = take(measure="tokens", most=100, amount=70), take(measure="tokens", most=100, amount=100)
        assert isinstance(await till.begin(1, 1, takes=(first,)), Admitted)
        assert await store.budgets.take((everything,), now_ns=samples.NOW_NS) == Spent(everything, 42 * 10**9)
        tries = tuple(samples.attempt(n, usage=Usage(tokens - 3, 3)) for n, tokens in enumerate(used, 1))
        await till.finish(1, attempts=tries)
        answer = await store.budgets.take((everything,), now_ns=samples.NOW_NS)
        assert answer == (Spent(everything, wait_s * 10**9) if wait_s else None)

    async def test_standing_tells_how_accounts_stand_and_touches_nothing(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(window=BERLIN_DAY), samples.budget("u", "user", 7))
        await till.spend(1, 30)
        await till.begin(2, 20)
        asked: Subjects = {"team": ("blue",), "user": ("key1/ann",), "key": ("key1",)}
        found = await store.budgets.standing(till.book, asked, now_ns=samples.NOW_NS)
        assert [(each.account.name, each.account.limit_nusd, each.counted) for each in found] == [
            ("team-cap/blue", 1000, Balance(30, 20)), ("u/key1/ann", 7, Balance())]
        later = await store.budgets.standing(till.book, asked, now_ns=samples.at_ns(TO_MIDNIGHT_S))
        assert [each.counted for each in later] == [Balance(), Balance()]
        assert await till.held("u") == []

    async def test_balances_are_shown_window_by_window_newest_first(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=100, window=BERLIN_DAY))
        await till.spend(1, 30)
        await till.begin(2, 20)
        await till.begin(3, Need(0), team="red", at_s=TO_MIDNIGHT_S)
        rows = await store.budgets.windows("team-cap", None, 10)
        midnight_ns = samples.at_ns(TO_MIDNIGHT_S)
        day_ns = 86_400 * 10**9
        assert [tuple(row) for row in rows] == [WINDOW_FIELDS] * 2
        assert [tuple(row.values()) for row in rows] == [
            ("team-cap", "red", "team", "day Europe/Berlin", midnight_ns, midnight_ns + day_ns, 0, 0, None, 0),
            ("team-cap", "blue", "team", "day Europe/Berlin", midnight_ns - day_ns, midnight_ns, 30, 20, 100, 0)]
        await store.budgets.change(change("set", limit_nusd=60))
        await till.begin(4, Need(0))  # sets nothing aside, so it says nothing of what was set aside under which limit
        assert [(row["subject"], row["limit_nusd"]) for row in await store.budgets.windows("team-cap", "blue", 10)] == [("blue", 100)]
        assert [row["subject"] for row in await store.budgets.windows("team-cap", None, 1)] == ["red"]
        assert await store.budgets.windows("nobody", None, 10) == []

    async def test_accounts_are_those_with_a_balance_now_and_those_with_a_limit_of_their_own(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget("b", window=BERLIN_DAY, limits={"green": 5}), samples.budget("a", "key", 9))
        await till.spend(1, 3)
        await till.spend(2, 4, team="red", key="k2", at_s=TO_MIDNIGHT_S)
        await store.budgets.change(change("set", "b", "white", limit_nusd=77))
        await store.budgets.change(change("set", "set-one", budget=samples.budget("set-one", "route", 1)))
        await store.budgets.change(change("set", "set-one", "fast", limit_nusd=2))

        async def shown(at_s: int = TO_MIDNIGHT_S, **wanted: Any) -> list[tuple[str, int | None, int]]:
            found = await store.budgets.accounts(till.book, AccountFilter(**wanted), now_ns=samples.at_ns(at_s))
            return [(each.account.name, each.account.limit_nusd, each.counted.posted) for each in found]

        every = [("a/k2", 9, 4), ("a/key000000001", 9, 3), ("b/green", 5, 0), ("b/red", 1000, 4), ("b/white", 77, 0), ("set-one/fast", 2, 0)]
        assert await shown() == every
        assert await shown(limit=2) == every[:2]
        assert await shown(budget="b", subject="red") == [("b/red", 1000, 4)]
        assert await shown(scope="key") == every[:2]
        assert await shown(0, budget="b") == [("b/blue", 1000, 3), ("b/green", 5, 0), ("b/white", 77, 0)]

    async def test_changes_are_kept_in_order_with_ids_of_their_own(self, store: Store, samples: ModuleType) -> None:
        first = await store.budgets.change(change("set", budget=samples.budget(window=HOUR, of=("b*", "c"), soft_nusd=7, limits={"x": 1})))
        second = await store.budgets.change(change("raise", subject="blue", limit_nusd=2, until_ns=9, note="for the demo"))
        third = await store.budgets.change(change("remove", "other"))
        assert first.id < second.id < third.id
        assert list(await store.budgets.changes()) == [first, second, third]
        assert list(await store.budgets.changes("team-cap")) == [first, second]
        assert (first.author, first.at_ns, first.budget) == ("ada", 5, samples.budget(
            window=HOUR, of=("b*", "c"), soft_nusd=7, limits={"x": 1}))

    @pytest.mark.parametrize("wrong", [
        {"limit_nusd": -1}, {"limit_nusd": 2**63}, {"soft_nusd": -1}, {"subject": "x" * 1025, "limit_nusd": 1}, {"note": "x" * 5000},
        {"kind": "raise", "limit_nusd": 5}, {"kind": "raise", "until_ns": 5}, {"kind": "raise", "limit_nusd": 5, "until_ns": 2**63},
    ], ids=" ".join)
    async def test_a_change_that_cannot_be_kept_is_refused(self, store: Store, wrong: dict[str, Any]) -> None:
        with pytest.raises(StoreError):
            await store.budgets.change(change(**{"kind": "set", **wrong}))
        assert list(await store.budgets.changes()) == []

    async def test_a_subject_with_an_endless_name_is_refused(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget("u", "user"))
        with pytest.raises(StoreError, match="1024"):
            await till.begin(1, 5, user="k/" + "x" * 2000)
        assert (await store.journal.call(samples.call_id(1)), await till.held("u")) == (None, [])

    async def test_where_nobody_died_nothing_is_suspect(self, store: Store, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget())
        await till.spend(1, 30)
        assert list(await store.budgets.suspects(10)) == []
        assert await store.budgets.resolve(samples.call_id(1), 5, author="ada", now_ns=samples.NOW_NS) is False
        assert await store.budgets.resolve("call_unknown", None, author="ada", now_ns=samples.NOW_NS) is False
        assert await till.held() == [("blue", 30, 0)]

    @pytest.mark.parametrize("by", COST_GROUPS)
    async def test_costs_equal_the_ledger_however_they_are_grouped(self, store: Store, samples: ModuleType, by: str) -> None:
        await _spend_here_and_there(store, samples)
        rows = await store.budgets.costs(by, 0, FOREVER_NS, 100)
        assert [tuple(row) for row in rows] == [COST_FIELDS] * len(rows)
        calls = sum(row["cost_nusd"] for row in await store.journal.calls(CallFilter()))
        assert sum(row["cost_nusd"] for row in rows) == calls == 196
        assert (sum(row["estimated_nusd"] for row in rows), sum(row["lines"] for row in rows)) == (7, 6)
        assert [(row["group"], row["cost_nusd"], row["estimated_nusd"], row["calls"], row["lines"]) for row in rows] == _EXPECTED[by]

    async def test_costs_are_of_a_stretch_of_time_and_what_is_left_out_stands_last(self, store: Store, samples: ModuleType) -> None:
        await _spend_here_and_there(store, samples)

        async def of(by: str, since_s: float, until_s: float, limit: int = 9) -> list[tuple[Any, ...]]:
            rows = await store.budgets.costs(by, samples.at_ns(since_s), samples.at_ns(until_s), limit)
            return [(row["group"], row["cost_nusd"], row["lines"]) for row in rows]

        assert await of("team", 0, 1) == []
        assert await of("team", 1, 2) == [("blue", 150, 4), ("red", 6, 1)]
        assert await of("team", 2, 10**6) == [("blue", 40, 1)]
        assert await of("day", 0, 10**6, limit=1) == [("2026-09-21", 156, 5), (None, 40, 1)]
        assert await of("model", 0, 10**6, limit=0) == [(None, 196, 6)]
        with pytest.raises(StoreError, match="grouped by model, team"):
            await store.budgets.costs("secret", 0, FOREVER_NS, 9)
        rest = (await store.budgets.costs("model", 0, FOREVER_NS, 0))[0]
        assert (rest["calls"], rest["estimated_nusd"]) == (5, 7)


async def _spend_here_and_there(store: Store, samples: ModuleType) -> None:
    """Five calls, six lines: two attempts in one call, an estimated one, a tool, another team without session, another day."""
    till = samples.Till(store)
    red = Principal("key2", team="red")
    guess = Usage(1, 1, estimated=True)
    several: tuple[tuple[int, tuple[int, ...], float, Mapping[str, Any]], ...] = (
        (1, (100, 23), 1, {}),
        (2, (7,), 1, {"attempts": (samples.attempt(1, usage=guess, cost_nusd=7, ended_ns=samples.at_ns(1)),)}),
        (3, (20,), 1, {"operation": "tool", "route": "mail.send", "origin": Origin(run="r-1")}),
        (4, (6,), 1, {"principal": red, "origin": Origin()}),
        (5, (40,), 40_000, {"route": "slow"}),
    )
    for n, costs, at_s, changes in several:
        known = {name: value for name, value in changes.items() if name != "attempts"}
        await store.journal.begin(samples.intent(n, **known))
        await till.finish(n, *costs, at_s=at_s, **changes)
    await store.journal.refuse(samples.refused(6), request=None)


_EXPECTED: Mapping[str, list[tuple[str, int, int, int, int]]] = {
    "model": [("alpha/small-1", 173, 7, 5, 5), ("beta/large-2", 23, 0, 1, 1)],
    "team": [("blue", 190, 7, 4, 5), ("red", 6, 0, 1, 1)],
    "org": [("acme", 190, 7, 4, 5), ("", 6, 0, 1, 1)],
    "key": [("key000000001", 190, 7, 4, 5), ("key2", 6, 0, 1, 1)],
    "session": [("key000000001/s-1", 170, 7, 3, 4), ("", 26, 0, 2, 2)],
    "run": [("key000000001/r-1", 190, 7, 4, 5), ("", 6, 0, 1, 1)],
    "route": [("fast", 136, 7, 3, 4), ("slow", 40, 0, 1, 1), ("", 20, 0, 1, 1)],
    "tool": [("", 176, 7, 4, 5), ("mail.send", 20, 0, 1, 1)],
    "day": [("2026-09-21", 156, 7, 4, 5), ("2026-09-22", 40, 0, 1, 1)],
}
