"""Active health checks: a provider that is to be asked is asked now and then whether it is well. No call: not judged, not on record.

Every process asks for itself: what it can reach is what its calls can reach. What it finds out goes to the breakers, which all share.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from gateway.background import Background
from gateway.breakers import LAST_RESORT, Breakers
from gateway.clock import Ids
from gateway.core.breaker import Ended, State
from gateway.core.plan import RouteTarget
from gateway.errors import AttemptFailed
from gateway.resilience_config import HealthConfig
from gateway.snapshot import Provider, Snapshot
from gateway.telemetry import Telemetry
from gateway.tools import ToolAdapter
from gateway.upstream.protocol import HttpRequest, Transport

_SPREAD: Final = 0.1  # of the interval, both ways: processes that were started together do not ask together for ever
_BUSY: Final = 429  # it is there, and says so
_CAUSE: Final = "health"  # of what a check has opened
_LEASE_S: Final = 5.0
_MOST_ANSWER: Final = 1024 * 1024  # bytes that are read of an answer; what it says is of no interest


@dataclass(slots=True)
class _Check:
    """One provider's check and what came of it so far: how often in a row it failed."""

    provider: Provider
    config: HealthConfig
    failed: int = 0

    def same_as(self, other: "_Check") -> bool:
        """Whether the other one asks the same in the same way."""
        return (self.provider, self.config) == (other.provider, other.config)

    def request(self) -> HttpRequest:
        """What is asked, with everything that a call of this provider has."""
        provider = self.provider
        assert not isinstance(provider.adapter, ToolAdapter)  # noqa: S101 - tells mypy so: tools are in no `[providers]`
        made = provider.adapter.health(self.config.path, provider.api_key)
        return HttpRequest(made.method, provider.base_url + made.path, {**provider.headers, **made.headers}, made.body, provider.private)


class HealthChecks:
    """Asks the providers of a snapshot. One per gateway."""

    def __init__(self, transport: Transport, breakers: Breakers, background: Background, telemetry: Telemetry, ids: Ids) -> None:
        self._transport = transport
        self._breakers = breakers
        self._background = background
        self._telemetry = telemetry
        self._ids = ids
        self._snapshot: Snapshot | None = None
        self._checks: dict[str, tuple[_Check, asyncio.Task[None]]] = {}

    def follow(self, snapshot: Snapshot) -> None:
        """Ask the providers of this snapshot from now on, as it says; what has not changed goes on as it is."""
        self._snapshot = snapshot
        wanted = {check.provider.name: check for check in _checks(snapshot)}
        for name, (check, task) in tuple(self._checks.items()):
            if name not in wanted or not check.same_as(wanted[name]):
                del self._checks[name]
                task.cancel()
        for name in wanted.keys() - self._checks.keys():
            check = wanted[name]
            task = self._background.every(partial(self._interval_s, check), partial(self._round, check), name=f"health of {name}")
            self._checks[name] = check, task

    def _interval_s(self, check: _Check) -> float:
        return check.config.interval * (1 - _SPREAD + 2 * _SPREAD * self._ids.jitter())

    async def _round(self, check: _Check) -> None:
        """Ask once, and tell the breakers what that means."""
        try:
            status = await self._ask(check)
        except AttemptFailed as failure:
            self._unwell(check, failure.cause)
        except TimeoutError:
            self._unwell(check, "timeout:total")
        else:
            if 200 <= status < 300:
                await self._well(check)
            elif status != _BUSY:
                self._unwell(check, f"status:{status}")

    async def _ask(self, check: _Check) -> int:
        """The status of the whole answer. Raises `AttemptFailed`, and `TimeoutError` where it is late as a whole."""
        timeout_s = check.config.timeout
        async with asyncio.timeout(timeout_s):
            answer = await self._transport.send(check.request(), connect_s=timeout_s, headers_s=timeout_s)
            try:
                await answer.read(limit=_MOST_ANSWER, idle_s=timeout_s)
            except AttemptFailed as failure:
                if failure.cause != "too_large":
                    raise
            finally:
                answer.release()
        return answer.status

    def _unwell(self, check: _Check, cause: str) -> None:
        check.failed += 1
        if check.failed < check.config.failures:
            return
        if check.failed == check.config.failures:
            self._telemetry.event("warning", "provider_unwell", provider=check.provider.name, cause=cause, failures=check.failed)
        for to in self._targets(check.provider.name):
            self._breakers.trip(to, _CAUSE)  # each time: one that a call has closed opens again

    async def _well(self, check: _Check) -> None:
        if check.failed >= check.config.failures:
            self._telemetry.event("info", "provider_well", provider=check.provider.name)
        check.failed = 0
        for to in self._targets(check.provider.name):
            await self._have_probed(to)

    async def _have_probed(self, to: RouteTarget) -> None:
        """Have a call see at once whether a target is well that a check has cut off. What calls have found out is theirs to undo."""
        condition = self._breakers.condition(to)
        if condition.state != State.OPEN or condition.cause != _CAUSE or condition.admits:
            return
        permit = await self._breakers.admit(to, _CAUSE, lease_s=_LEASE_S, last_resort=True)
        if permit is not None:  # else an operator has closed it; and one that may probe says nothing, for a check is no call
            self._breakers.ended(permit, Ended("success" if permit.state == LAST_RESORT else "neutral", _CAUSE))

    def _targets(self, provider: str) -> list[RouteTarget]:
        """Everything that calls of any route may be sent to there."""
        known = self._snapshot.targets if self._snapshot is not None else ()
        return [to for to in known if to.target.provider == provider]


def _checks(snapshot: Snapshot) -> Iterator[_Check]:
    for name, given in snapshot.config.providers.items():
        if given.health is not None:
            yield _Check(snapshot.providers[name], given.health)
