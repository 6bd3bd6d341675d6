"""One call of a session at a time, where a rule asks for it: what one call leaves behind is there when the next one is judged."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Final

from gateway.call import Call
from gateway.clock import Clock
from gateway.core.decision import PHASES
from gateway.core.facts import match_keys
from gateway.core.question import Question
from gateway.core.rules import Bundle
from gateway.errors import Overloaded, StoreUnavailable
from gateway.gather import selected
from gateway.session import SessionFacts, SessionKey
from gateway.store.protocol import Sessions

_PAUSE_S: Final = 0.02  # between two looks at what another call, perhaps of another process, is doing
_SLACK_S: Final = 60.0  # past the call's own deadline, before the turn of a process that died is free
_FREE: Final = nullcontext()


class Turns:
    """What calls of one session know of each other. `sessions` is the store's, so it holds between processes too."""

    def __init__(self, sessions: Sessions, clock: Clock) -> None:
        self._sessions = sessions
        self._clock = clock

    def turn(self, bundle: Bundle, call: Call, *, wait_s: float, longest_s: float) -> AbstractAsyncContextManager[None]:
        """Hold the session's turn, if a rule that could apply to this call asks for one at a time.

        Raises:
            Overloaded: the calls before this one took longer than `wait_s`.
            StoreUnavailable: nobody can say whose turn it is.
        """
        key = _key(call)
        if key is None or not any(rules.serial for rules in bundle.phases.values()) or not _serial(bundle, call):
            return _FREE
        return self._held(key, call, wait_s, longest_s)

    @asynccontextmanager
    async def _held(self, key: SessionKey, call: Call, wait_s: float, longest_s: float) -> AsyncIterator[None]:
        try:  # around the waiting, too: a caller that leaves in the middle of it may have been given the turn
            await self._wait(key, call.id, wait_s, longest_s)
            yield
        finally:
            with contextlib.suppress(StoreUnavailable):  # then the turn is over when its time is
                await asyncio.shield(self._sessions.leave(key, call.id))

    async def facts(self, bundle: Bundle, question: Question, *, wait_s: float) -> SessionFacts | None:
        """What the rules that could apply read of the session; None where they read nothing, or the call belongs to none.

        Where they ask about a tool that is being called at the moment, that call is waited for, `wait_s` at most: it may be the one
        that they ask for.
        """
        key = _key(question.call)
        if key is None or not bundle.phases[question.phase].reads_session:
            return None
        selection = selected(bundle, question)
        if not selection.reads_session:
            return None
        tools = frozenset(query.tool for query in selection.queries)
        if question.phase == "tool_result":
            tools -= {question.call.route}  # a call of a tool is under way itself until its result is judged
        await self._others(key, tools, wait_s)
        return await self._sessions.facts(
            key, selection.queries, now_ns=self._clock.now_ns(), with_facts=selection.reads_facts)

    async def _others(self, key: SessionKey, tools: frozenset[str], wait_s: float) -> None:
        deadline = self._clock.monotonic() + wait_s
        while tools and await self._sessions.in_flight(key, tools) and self._clock.monotonic() < deadline:
            await self._clock.sleep(_PAUSE_S)

    async def _wait(self, key: SessionKey, holder: str, wait_s: float, longest_s: float) -> None:
        deadline = self._clock.monotonic() + wait_s
        while not await self._enter(key, holder, longest_s):
            if self._clock.monotonic() >= deadline:
                busy = "Another call of this session is being handled, and a rule asks for one at a time. Try again."
                raise Overloaded(busy, retry_after_s=1)
            await self._clock.sleep(_PAUSE_S)

    async def _enter(self, key: SessionKey, holder: str, longest_s: float) -> bool:
        now_ns = self._clock.now_ns()
        return await self._sessions.enter(key, holder, now_ns=now_ns, until_ns=now_ns + int((longest_s + _SLACK_S) * 1e9))


def _key(call: Call) -> SessionKey | None:
    return SessionKey(call.principal.id, call.origin.session) if call.origin.session else None


def _serial(bundle: Bundle, call: Call) -> bool:
    """Whether any rule that could be asked on the way of this call is serial. Which tools a model will call nobody knows: any may."""
    for phase in PHASES:
        index = bundle.phases[phase].index
        keys = match_keys(Question(phase, call, 0), with_tools=phase == "request" and index.reads_tools)
        if index.select(keys if phase == "request" else replace(keys, tools=_tools(call))).serial:
            return True
    return False


def _tools(call: Call) -> tuple[str, ...] | None:
    return (call.route,) if call.operation == "tool" else None
