"""Breakers of the store without a disk: the same promises as on SQLite, from a dict."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from gateway.core.breaker import Breaker, Step, after
from gateway.store.rows import text


class MemoryBreakers:
    """`Breakers` in a dict. Every verb is done before it first awaits, so none is seen half done."""

    def __init__(self) -> None:
        self._breakers: dict[str, Breaker] = {}
        self._generation = 0

    async def apply(self, target: str, step: Step) -> tuple[Breaker, Breaker]:
        target = text(target)
        before = self._breakers.get(target) or Breaker(target)
        now = after(before, replace(step, author=text(step.author), note=text(step.note)))
        if now is not before:
            self._generation += 1
            now = self._breakers[target] = replace(now, generation=self._generation)
        return before, now

    async def all(self) -> tuple[int, Sequence[Breaker]]:
        return self._generation, [self._breakers[target] for target in sorted(self._breakers)]

    async def generation(self) -> int:
        return self._generation

    async def prune(self, keep: Collection[str], *, before_ns: int) -> int:
        kept = set(map(text, keep))
        gone = [target for target, each in self._breakers.items() if target not in kept and each.since_ns < before_ns]
        for target in gone:
            del self._breakers[target]
        self._generation += bool(gone)
        return len(gone)
