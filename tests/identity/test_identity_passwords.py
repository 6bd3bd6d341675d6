"""Passwords: what is kept says nothing, what is compared is compared alike, and only a few are worked out at a time."""

import asyncio
import threading

import pytest
from argon2 import PasswordHasher

from gateway.errors import InvalidRequest, Overloaded
from gateway.identity.passwords import LONGEST, SHORTEST, Passwords, checked, hashed

GOOD = "correct horse battery"


async def test_a_password_is_known_by_its_hash_alone_and_each_hash_is_another(passwords):
    one, two = await passwords.hash(GOOD), await passwords.hash(GOOD)
    assert one.startswith("$argon2id$")
    assert one != two
    assert GOOD not in one
    assert [await passwords.matches(each, GOOD) for each in (one, two)] == [True, True]
    assert await passwords.matches(one, GOOD + " ") is False


def test_the_hash_costs_what_rfc_9106_asks_for():
    assert "$m=32768,t=3,p=1$" in hashed(GOOD)


@pytest.mark.parametrize("kept", ["", "no hash", "$argon2id$v=19$m=8,t=1,p=1$", "plain:" + GOOD])
@pytest.mark.parametrize("password", [GOOD, "", "\ud800", "x" * 100_000])
async def test_where_there_is_no_hash_no_password_is_right(passwords, kept, password):
    assert await passwords.matches(kept, password) is False


async def test_the_empty_password_is_not_that_of_whoever_has_none(passwords):
    """The hash that nobody's is compared with is one of the empty text."""
    assert await passwords.matches("", "") is False


async def test_a_letter_may_be_composed_in_any_way(passwords):
    kept = await passwords.hash("caf\u00e9 caf\u00e9 caf\u00e9")
    assert await passwords.matches(kept, "cafe\u0301 cafe\u0301 cafe\u0301") is True


@pytest.mark.parametrize(("password", "right"), [
    ("x" * (SHORTEST - 1), False), ("x" * SHORTEST, True), ("x" * LONGEST, True), ("x" * (LONGEST + 1), False), ("", False),
    ("\U0001f511" * SHORTEST, True), ("\ufdfa" * 20, False)])  # one letter that stands for eighteen
def test_a_password_is_neither_short_nor_endless_and_is_never_quoted(password, right):
    if right:
        assert checked(password) == password
        return
    with pytest.raises(InvalidRequest) as caught:
        checked(password)
    assert len(password) < 3 or password not in caught.value.message


class Slow(PasswordHasher):
    """Compares when it is told to, and says how many it compares at once."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.go, self.lock, self.now, self.most = threading.Event(), threading.Lock(), 0, 0

    def verify(self, kept, password):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.go.wait(30)
        with self.lock:
            self.now -= 1
        return super().verify(kept, password)


async def test_a_crowd_waits_for_a_few_and_whoever_comes_last_is_turned_away():
    hasher = Slow()
    made = Passwords(hasher)
    kept = hasher.hash(GOOD)
    waiting = [asyncio.create_task(made.matches(kept, GOOD)) for _ in range(32)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await made.matches(kept, GOOD)
    for each in waiting[::2]:
        each.cancel()  # whoever goes away leaves no place that another thread would take
    await asyncio.sleep(0)
    again = asyncio.create_task(made.matches(kept, GOOD))
    hasher.go.set()
    found = await asyncio.wait_for(asyncio.gather(*waiting, again, return_exceptions=True), 30)
    assert [*found[1:32:2], found[-1]] == [True] * 17
    assert hasher.most <= 2
    made.close()
