"""Passwords of people: argon2id (RFC 9106), worked out in threads, a few at a time. Never kept, logged or told."""

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import InvalidRequest, Overloaded

T = TypeVar("T")

SHORTEST: Final = 12  # characters
LONGEST: Final = 256
_HASHER: Final = PasswordHasher(time_cost=3, memory_cost=32 * 1024, parallelism=1)  # some 50 ms, and 32 MiB while it works
_AT_ONCE: Final = 2  # more take memory, and processors from calls
_MOST_WAITING: Final = 32


def checked(password: str, pointer: str = "/password") -> str:
    """A password that somebody may have. Raises `InvalidRequest`, which never quotes it."""
    if not SHORTEST <= len(_normal(password)) <= LONGEST:
        raise InvalidRequest(f"A password has {SHORTEST} to {LONGEST} characters; several words are good.", pointer=pointer)
    return password


def hashed(password: str, hasher: PasswordHasher = _HASHER) -> str:
    """What is kept of a password. Takes its time."""
    return hasher.hash(_normal(password))


class Passwords:
    """Hashes and compares, a few at a time; whoever comes while very many wait is turned away. `hasher` is argon2's with its costs."""

    def __init__(self, hasher: PasswordHasher = _HASHER) -> None:
        self._hasher = hasher
        self._nobody: str | None = None  # the hash that is compared with where there is none
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lockgate-passwords")
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """What is kept of a password."""
        return await self._in_turn(partial(hashed, password, self._hasher))

    async def matches(self, kept: str, password: str) -> bool:
        """Whether it is the password of which this hash is kept; without one (an empty text) it is not, after as much work."""
        return await self._in_turn(partial(self._matches, kept, password))

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_turn(self, work: Callable[[], T]) -> T:
        if self._waiting >= _MOST_WAITING:
            raise Overloaded("Very many are logging in at the moment. Try again shortly.", retry_after_s=2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    def _matches(self, kept: str, password: str) -> bool:
        if self._nobody is None:
            self._nobody = hashed("", self._hasher)
        try:
            self._hasher.verify(kept or self._nobody, _normal(password))
        except (VerificationError, InvalidHashError):
            return False
        return kept != ""


def _normal(password: str) -> str:
    """The same text, however a keyboard composes its letters (NIST SP 800-63B, 5.1.1.2). A lone surrogate is no letter."""
    return unicodedata.normalize("NFKC", password.encode(errors="replace").decode())
