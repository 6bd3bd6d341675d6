"""Accounts of people and their logins in memory: the same promises as on SQLite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gateway.errors import StoreError
from gateway.store.approvals_protocol import Login, Person, Stamped
from gateway.store.people import MOST_LOGINS, MOST_NAMES


class MemoryPeople:
    """`People` in dicts. Every verb is done before it first awaits, so none is seen half done."""

    def __init__(self) -> None:
        self._people: dict[str, Person] = {}
        self._events: dict[str, list[Stamped]] = {}
        self._logins: dict[bytes, Login] = {}
        self._tries: dict[bytes, int] = {}  # in the order in which they were last tried
        self._locked: dict[bytes, int] = {}

    async def add(self, person: Person, stamp: Stamped) -> None:
        if person.id in self._people or self._is_taken(person):
            raise StoreError(f"there is an account {person.id} already, or one with its token or subject")
        self._people[person.id] = person
        self._events[person.id] = [stamp]

    async def change(
        self, person_id: str, how: Callable[[Person], Person], stamp: Stamped, *, log_out: bool = False,
    ) -> Person | None:
        before = self._people.get(person_id)
        if before is None:
            return None
        now = how(before)
        if now != before:
            if self._is_taken(now):
                raise StoreError("there is an account with this token or subject already")
            self._people[person_id] = now
            self._events[person_id].append(stamp)
        if log_out:
            self._logins = {login_id: login for login_id, login in self._logins.items() if login.person != person_id}
        return now

    async def get(self, person_id: str) -> Person | None:
        return self._people.get(person_id)

    async def by_token(self, token: bytes) -> Person | None:
        return next((person for person in self._people.values() if token and person.token == token), None)

    async def all(self) -> Sequence[Person]:
        return [self._people[person_id] for person_id in sorted(self._people)]

    async def history(self, person_id: str, limit: int) -> Sequence[Stamped]:
        return self._events.get(person_id, [])[::-1][:limit]

    async def attempt(self, counts: Mapping[bytes, int], *, now_ns: int, lock_until_ns: int) -> int | None:
        locked = [self._locked[name] for name in counts if self._locked.get(name, now_ns) > now_ns]
        if locked:
            return max(locked)
        for name, most in counts.items():
            self._locked.pop(name, None)
            tries = self._tries.pop(name, 0) + 1
            self._tries[name] = tries
            if tries >= most:
                self._tries[name] = 0
                self._locked[name] = lock_until_ns
            if len(self._tries) > MOST_NAMES:
                self._forget(next(iter(self._tries)))
        return None

    async def forgive(self, names: Sequence[bytes]) -> None:
        for name in [each for each in self._tries if each.startswith(tuple(names))]:
            self._forget(name)

    def _forget(self, name: bytes) -> None:
        self._tries.pop(name)
        self._locked.pop(name, None)

    async def log_in(self, login: Login) -> None:
        live = {login_id: each for login_id, each in self._logins.items() if each.expires_ns > login.created_ns}
        self._logins = live | {login.id: login}
        mine = sorted((each for each in self._logins.values() if each.person == login.person), key=lambda each: each.created_ns)
        for each in mine[:-MOST_LOGINS]:
            del self._logins[each.id]

    async def login(self, login_id: bytes, *, now_ns: int) -> tuple[Login, Person | None] | None:
        login = self._logins.get(login_id)
        return None if login is None or login.expires_ns <= now_ns else (login, self._people.get(login.person))

    async def seen(self, login_id: bytes, *, now_ns: int) -> None:
        login = self._logins.get(login_id)
        if login is not None:
            self._logins[login_id] = replace(login, last_ns=max(login.last_ns, now_ns))

    async def log_out(self, login_id: bytes) -> bool:
        return self._logins.pop(login_id, None) is not None

    def _is_taken(self, person: Person) -> bool:
        """Whether another account has its token or its subject."""
        others = [each for each in self._people.values() if each.id != person.id]
        return any((person.token and each.token == person.token) or (person.subject and each.subject == person.subject) for each in others)
