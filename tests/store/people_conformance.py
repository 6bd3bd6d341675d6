"""What every store promises of people. Inherit `PeopleConformance` and give it a `store` fixture: an open, empty store."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.errors import StoreError
from gateway.store.approvals_protocol import Login, People, Person, Stamped
from gateway.store.protocol import Store

S = 1_000_000_000
ADA = Person("ada", "Ada", "approve", ("finance",), ("blue",), "ada@example.org", "argon2", b"t" * 32, "https://id.example ada", 5)
BOB = Person("bob", "Bob", "admin")


def stamp(what: str = "created", at_ns: int = 1, **detail: Any) -> Stamped:
    return Stamped(what, "admin", at_ns, detail)


def login(number: int = 1, person: str = "ada", **fields: Any) -> Login:
    given = {"method": "password", "csrf": f"c{number}", "created_ns": 10 * S, "expires_ns": 100 * S, "last_ns": 10 * S, **fields}
    return Login(id=bytes([number]) * 32, person=person, **given)


class PeopleConformance:
    """People, through the protocol alone."""

    @pytest.fixture
    def people(self, store: Store) -> People:
        return store.people

    async def test_an_account_is_found_as_it_was_added_by_id_token_and_subject(self, people: People) -> None:
        await people.add(BOB, stamp())
        await people.add(ADA, stamp())
        assert await people.get("ada") == await people.by_token(ADA.token) == ADA
        assert await people.all() == [ADA, BOB]
        assert (await people.get("Ada"), await people.get(""), await people.by_token(b"x" * 32)) == (None, None, None)

    async def test_no_token_is_not_a_token_that_many_share(self, people: People) -> None:
        await people.add(BOB, stamp())
        await people.add(replace(BOB, id="eve"), stamp())
        assert await people.by_token(b"") is None

    @pytest.mark.parametrize("twin", [
        replace(BOB, id="ada"), replace(BOB, token=ADA.token), replace(BOB, subject=ADA.subject)], ids=["id", "token", "subject"])
    async def test_an_id_a_token_and_a_subject_are_one_account_s(self, people: People, twin: Person) -> None:
        await people.add(ADA, stamp())
        with pytest.raises(StoreError, match="already"):
            await people.add(twin, stamp())
        assert await people.all() == [ADA]
        if twin.id != "ada":
            await people.add(BOB, stamp())
            with pytest.raises(StoreError, match="already"):
                await people.change("bob", lambda person: replace(person, token=twin.token, subject=twin.subject), stamp("changed"))
            assert await people.all() == [ADA, BOB]
            assert [event.what for event in await people.history("bob", 9)] == ["created"]

    async def test_a_change_is_made_of_what_there_is_and_says_who_made_it(self, people: People) -> None:
        await people.add(ADA, stamp())
        changed = await people.change(
            "ada", lambda person: replace(person, permission="view", disabled_ns=7), stamp("changed", 8, permission="view"))
        assert changed == await people.get("ada") == replace(ADA, permission="view", disabled_ns=7)
        assert await people.history("ada", 9) == [stamp("changed", 8, permission="view"), stamp()]
        assert await people.history("ada", 1) == [stamp("changed", 8, permission="view")]
        assert (await people.history("bob", 9), await people.change("bob", lambda person: person, stamp("changed"))) == ([], None)

    async def test_what_changes_nothing_is_not_on_record(self, people: People) -> None:
        await people.add(ADA, stamp())
        assert await people.change("ada", lambda person: person, stamp("changed")) == ADA
        assert [event.what for event in await people.history("ada", 9)] == ["created"]

    async def test_changes_at_the_same_time_do_not_undo_each_other(self, people: People) -> None:
        await people.add(ADA, stamp())
        await asyncio.gather(*(
            people.change("ada", lambda person, n=n: replace(person, roles=(*person.roles, f"r{n}")), stamp("changed"))  # type: ignore[misc]
            for n in range(20)))
        found = await people.get("ada")
        assert found is not None
        assert set(found.roles) == {"finance", *(f"r{n}" for n in range(20))}

    async def test_passwords_are_counted_before_they_are_looked_at_and_lock_a_name(self, people: People) -> None:
        name = b"n" * 32
        tries = [await people.attempt({name: 3}, now_ns=n, lock_until_ns=100) for n in range(5)]
        assert tries == [None, None, None, 100, 100]
        assert await people.attempt({b"m" * 32: 3}, now_ns=5, lock_until_ns=100) is None
        assert await people.attempt({name: 3}, now_ns=99, lock_until_ns=500) == 100  # asking again makes it no longer
        assert [await people.attempt({name: 3}, now_ns=100, lock_until_ns=500) for _ in range(4)] == [None, None, None, 500]

    async def test_a_password_is_counted_under_several_names_and_where_one_is_locked_under_none(self, people: People) -> None:
        one, two, all_of_them = b"n1", b"n2", b"n*"
        for n in range(2):
            assert await people.attempt({one: 2, all_of_them: 3}, now_ns=n, lock_until_ns=100) is None
        for n in range(2, 9):
            assert await people.attempt({one: 2, all_of_them: 3}, now_ns=n, lock_until_ns=100 + n) == 100
        assert await people.attempt({two: 2, all_of_them: 3}, now_ns=9, lock_until_ns=200) is None
        for here in (one, two):
            assert await people.attempt({here: 2, all_of_them: 3}, now_ns=10, lock_until_ns=300) == 200  # the later of both
        assert await people.attempt({two: 2}, now_ns=11, lock_until_ns=300) is None

    async def test_a_right_password_ends_the_count_and_the_lock(self, people: People) -> None:
        name = b"n" * 32
        for _ in range(2):
            assert await people.attempt({name: 3}, now_ns=1, lock_until_ns=100) is None
        await people.forgive([name])
        assert [await people.attempt({name: 3}, now_ns=1, lock_until_ns=100) for _ in range(4)] == [None, None, None, 100]
        await people.forgive([name])
        await people.forgive([b"nobody's", b"\xff" * 32])
        await people.forgive([])
        assert await people.attempt({name: 3}, now_ns=1, lock_until_ns=100) is None

    async def test_what_is_forgiven_are_names_that_begin_so_and_no_others(self, people: People) -> None:
        names = [b"m" + b"\xff" * 63, b"n", b"n\x00", b"n" + b"\xff" * 63, b"o"]
        for name in names:
            assert await people.attempt({name: 1}, now_ns=1, lock_until_ns=100) is None
        await people.forgive([b"n"])
        assert [await people.attempt({name: 1}, now_ns=2, lock_until_ns=100) for name in names] == [100, None, None, None, 100]
        await people.forgive([b"n\x00", b"o"])
        assert [await people.attempt({name: 1}, now_ns=3, lock_until_ns=100) for name in names] == [100, 100, None, 100, None]

    async def test_many_guesses_at_once_are_no_more_than_one_after_another(self, people: People) -> None:
        answers = await asyncio.gather(*(people.attempt({b"n" * 32: 5}, now_ns=1, lock_until_ns=100) for _ in range(50)))
        assert sum(answer is None for answer in answers) == 5

    async def test_a_login_counts_until_its_time_is_over(self, people: People) -> None:
        await people.add(ADA, stamp())
        made = login(roles=("cfo",), teams=())
        await people.log_in(made)
        assert await people.login(made.id, now_ns=99 * S) == (made, ADA)
        assert await people.login(made.id, now_ns=100 * S) is None
        assert await people.login(b"?" * 32, now_ns=11 * S) is None

    async def test_a_login_is_told_with_the_account_as_it_is_now(self, people: People) -> None:
        await people.add(ADA, stamp())
        await people.log_in(login())
        await people.log_in(login(2, "admin"))
        await people.change("ada", lambda person: replace(person, disabled_ns=1), stamp("disabled"))
        assert await people.login(login().id, now_ns=11 * S) == (login(), replace(ADA, disabled_ns=1))
        assert await people.login(login(2).id, now_ns=11 * S) == (login(2, "admin"), None)

    async def test_the_last_use_of_a_login_only_moves_forward(self, people: People) -> None:
        await people.log_in(login())
        for now_ns in (30 * S, 20 * S):
            await people.seen(login().id, now_ns=now_ns)
        await people.seen(b"?" * 32, now_ns=1)
        found = await people.login(login().id, now_ns=31 * S)
        assert found is not None
        assert found[0].last_ns == 30 * S

    async def test_one_login_or_all_of_a_person_are_ended(self, people: People) -> None:
        await people.add(ADA, stamp())
        for number in (1, 2, 3):
            await people.log_in(login(number))
        await people.log_in(login(4, "admin"))
        assert await people.log_out(login(1).id) is True
        assert await people.log_out(login(1).id) is False
        assert await people.login(login(2).id, now_ns=11 * S) is not None
        await people.change("ada", lambda person: replace(person, password="other"), stamp("password"), log_out=True)
        assert [await people.login(login(number).id, now_ns=11 * S) for number in (1, 2, 3)] == [None, None, None]
        assert await people.login(login(4).id, now_ns=11 * S) is not None

    async def test_logins_do_not_heap_up(self, people: People) -> None:
        for number in range(1, 31):
            await people.log_in(login(number, created_ns=number * S, expires_ns=(number + 60) * S))
        live = [number for number in range(1, 31) if await people.login(login(number).id, now_ns=31 * S) is not None]
        assert live == list(range(11, 31))
        await people.log_in(login(99, "bob", created_ns=85 * S, expires_ns=99 * S))  # what is over by then is forgotten
        assert [number for number in range(1, 31) if await people.login(login(number).id, now_ns=31 * S) is not None] == list(range(26, 31))
