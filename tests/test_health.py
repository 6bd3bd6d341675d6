"""A provider that is to be asked is asked as its calls are sent, at its pace, and what it says or fails to say reaches the breakers."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.background import Background
from gateway.breakers import Breakers, Permit
from gateway.call import Target
from gateway.clock import SystemIds
from gateway.core.breaker import Condition, Ended
from gateway.core.plan import Classifier, Deadlines, Mirror, Retry, Route, RouteTarget
from gateway.errors import AttemptFailed
from gateway.health import HealthChecks
from gateway.plugins import load_adapter, shipped
from gateway.resilience_config import HealthConfig
from gateway.secret import Secret
from gateway.snapshot import Provider
from gateway.store.memory import MemoryStore
from gateway.upstream.protocol import HttpRequest

SOON_S = 20
ADAPTER = load_adapter("openai", [shipped("adapters")])
DEADLINES = Deadlines(1, 1, 1, 1, 1)


class HandClock:
    """Time passes when somebody says so: whoever sleeps waits for `go`."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._asleep: list[asyncio.Future[None]] = []

    def now_ns(self) -> int:
        return 0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self._add()

    def _add(self) -> asyncio.Future[None]:
        self._asleep.append(asyncio.get_running_loop().create_future())
        return self._asleep[-1]

    async def go(self, count: int = 1) -> None:
        """Wake everybody up once `count` sleep."""
        await until(lambda: len([each for each in self._asleep if not each.done()]) == count)
        sleepers, self._asleep = self._asleep, []
        for each in sleepers:
            if not each.done():
                each.set_result(None)
        await until(lambda: len(self._asleep) == count)


async def until(condition: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0)


@dataclass
class Answer:
    status: int
    failure: AttemptFailed | None = None
    hang: bool = False
    released: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    async def read(self, *, limit: int, idle_s: float) -> bytes:
        assert min(limit, idle_s) > 0
        if self.hang:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return b"{}"

    async def chunk(self, *, timeout_s: float) -> bytes:
        raise NotImplementedError

    def release(self) -> None:
        self.released += 1

    def abort(self) -> None:
        raise NotImplementedError


@dataclass
class House:
    """Health checks among fakes. `says` is what providers answer, by their host: a status, an answer or a failure."""

    jitter_: float = 0.5
    clock: HandClock = field(default_factory=HandClock)
    says: dict[str, Any] = field(default_factory=dict)
    asked: list[HttpRequest] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    conditions: dict[str, Condition] = field(default_factory=dict)
    permit: str = "last_resort"
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        fake: Any = self
        self.background = Background(self.clock, fake)
        self.checks = HealthChecks(fake, fake, self.background, fake, fake)

    async def send(self, request: HttpRequest, *, connect_s: float, headers_s: float) -> Any:
        self.asked.append(request)
        self.waits.append((connect_s, headers_s))
        said = self.says.get(request.url.split("/")[2], 200)
        if isinstance(said, AttemptFailed):
            raise said
        return Answer(said) if isinstance(said, int) else said

    def trip(self, to: RouteTarget, cause: str) -> None:
        assert cause == "health"
        self.told.append(("trip", str(to.target)))
        self.conditions.setdefault(str(to.target), Condition("open", admits=False, cause="health"))

    def condition(self, to: RouteTarget) -> Condition:
        return self.conditions.get(str(to.target), Condition())

    async def admit(self, to: RouteTarget, holder: str, *, lease_s: float, last_resort: bool) -> Permit | None:
        assert (holder, last_resort, lease_s > 0) == ("health", True, True)
        return Permit(to, self.permit, holder) if self.permit else None

    def ended(self, permit: Permit, ended: Ended) -> None:
        self.told.append((ended.kind, str(permit.to.target)))
        self.conditions.pop(str(permit.to.target))

    def breaker(self, target: str, state: str) -> None: ...

    def breaker_tripped(self, target: str) -> None: ...

    def event(self, level: str, name: str, **fields: Any) -> None:
        self.events.append((level, name, fields))

    def jitter(self) -> float:
        return self.jitter_

    async def after(self, said: Any, *, count: int = 1) -> list[tuple[str, str]]:
        """What the breakers hear of the next `count` rounds if host `one` says this."""
        self.says["one"] = said
        self.told.clear()
        for _ in range(count):
            await self.clock.go()
        return list(self.told)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    await made.background.stop()


def to(text: str) -> RouteTarget:
    return RouteTarget(Target(*text.split("/")), None)


def route(name: str, *targets: str, **more: Any) -> Route:
    return Route(name, frozenset({"chat"}), tuple(map(to, targets)), DEADLINES, Retry(1, 0, 0), **more)


def snapshot(*routes: Route, **health: HealthConfig | None) -> Any:
    """A snapshot as far as it is looked at: providers by name, with how they are asked, and the routes."""
    providers = {name: Provider(name, ADAPTER, f"http://{name}/v1", Secret(f"key-{name}"), {"x-org": "acme"}, 1000) for name in health}
    config = SimpleNamespace(providers={name: SimpleNamespace(health=given) for name, given in health.items()})
    targets = {to.target: to for each in routes for to in each.reached}
    return SimpleNamespace(config=config, providers=providers, targets=targets.values())


def usual(**changes: Any) -> HealthConfig:
    return HealthConfig().model_copy(update=changes)


async def test_a_provider_is_asked_as_its_calls_are_sent_and_one_that_says_nothing_of_it_is_not(house):
    house.checks.follow(snapshot(one=usual(path="/up?x=1", timeout=1.5), two=None))
    await until(lambda: house.clock.slept)
    (request,) = house.asked
    assert (request.method, request.url, request.body) == ("GET", "http://one/v1/up?x=1", b"")
    assert request.headers == {"x-org": "acme", "accept": "application/json", "authorization": "Bearer key-one"}
    assert house.waits == [(1.5, 1.5)]


@pytest.mark.parametrize(("jitter", "wait_s"), [(0.0, 9.0), (0.5, 10.0), (0.999_999, 11.0)])
async def test_its_pace_varies_by_a_tenth(house, jitter, wait_s):
    """Workers that started together must not ask together for ever."""
    house.jitter_ = jitter
    house.checks.follow(snapshot(one=usual(interval=10.0)))
    await until(lambda: house.clock.slept)
    assert house.clock.slept[0] == pytest.approx(wait_s, rel=1e-4)


async def test_failures_in_a_row_open_every_target_of_the_provider_and_no_other(house):
    classifier = Classifier(to("one/small"), ("a", "b"), "a", "", 1, 1)
    house.checks.follow(snapshot(
        route("r", "one/a", "two/a"), route("s", "one/a", "one/b", mirrors=(Mirror(to("one/m"), 1), Mirror(to("two/m"), 1)), classifier=classifier),
        one=usual(failures=3), two=None))
    await until(lambda: house.clock.slept)
    assert await house.after(AttemptFailed("connect", "no", retryable=True), count=2) == []
    assert await house.after(503) == [("trip", f"one/{model}") for model in ("a", "b", "m", "small")]
    assert len(await house.after(503)) == 4  # told again: nobody may have opened what has just been let through
    assert house.events == [("warning", "provider_unwell", {"provider": "one", "cause": "status:503", "failures": 3})]
    assert await house.after(200) == [("success", f"one/{model}") for model in ("a", "b", "m", "small")]
    assert house.events[1:] == [("info", "provider_well", {"provider": "one"})]


async def test_one_good_answer_makes_the_count_begin_again(house):
    house.checks.follow(snapshot(route("r", "one/a"), one=usual(failures=2)))
    await until(lambda: house.clock.slept)
    for _ in range(3):
        assert await house.after(500) == []
        assert await house.after(200) == []
    assert house.events == []


@pytest.mark.parametrize(("said", "unwell"), [
    (200, False), (204, False), (299, False), (301, True), (401, True), (404, True), (500, True), (103, True),
    (AttemptFailed("timeout:headers", "late", retryable=True), True),
    (Answer(200, AttemptFailed("too_large", "over", retryable=False)), False),
    (Answer(200, AttemptFailed("cut", "cut", retryable=True)), True),
])
async def test_what_is_well_and_what_is_not(house, said, unwell):
    """A wrong key and a wrong path fail calls, or would never tell anything: both are seen in the log at once."""
    house.checks.follow(snapshot(route("r", "one/a"), one=usual(failures=1)))
    await until(lambda: house.clock.slept)
    assert await house.after(said) == ([("trip", "one/a")] if unwell else [])
    if isinstance(said, Answer):
        assert said.released == 1


async def test_one_that_is_busy_is_neither(house):
    """429: it is there. Its calls say better whether it takes any."""
    house.checks.follow(snapshot(route("r", "one/a"), one=usual(failures=2)))
    await until(lambda: house.clock.slept)
    assert await house.after(500) == []
    assert await house.after(429) == []
    assert await house.after(500) == [("trip", "one/a")]


@pytest.mark.parametrize(("condition", "permit", "told"), [
    (Condition("open", admits=False, cause="health"), "last_resort", [("success", "one/a")]),
    (Condition("open", admits=False, cause="health"), "half_open", [("neutral", "one/a")]),
    (Condition("open", admits=False, cause="health"), "", []),
    (Condition("open", admits=True, cause="health"), "last_resort", []),
    (Condition("open", admits=False, cause="3 of 10 calls failed"), "last_resort", []),
    (Condition("half_open", admits=False, cause="health"), "last_resort", []),
    (Condition("forced_open", admits=False, cause="health"), "last_resort", []),
    (Condition("closed", admits=False, cooling_s=2.0), "last_resort", []),
])
async def test_a_check_undoes_what_checks_have_done_and_nothing_else(house, condition, permit, told):
    """A provider can list its models and fail every call: were its breaker opened at each check, it would be probed for ever."""
    house.checks.follow(snapshot(route("r", "one/a"), one=usual()))
    await until(lambda: house.clock.slept)
    house.conditions["one/a"], house.permit = condition, permit
    assert await house.after(200) == told


async def test_a_dead_provider_is_closed_to_calls_and_probed_by_one_as_soon_as_it_is_back(house):
    """With real breakers: open for minutes by itself, it has its probe at the first check that is answered."""
    fake: Any = house
    breakers = Breakers(MemoryStore("test").breakers, house.clock, SystemIds(house.clock), fake)
    checks = HealthChecks(fake, breakers, house.background, fake, fake)
    given = snapshot(route("r", "one/a"), one=usual(failures=2))
    (to,) = given.targets
    breakers.serve([to])
    house.says["one"] = 503
    checks.follow(given)
    await until(lambda: house.clock.slept)
    assert breakers.condition(to).admits
    await house.clock.go()
    condition = breakers.condition(to)
    assert (condition.state, condition.admits, condition.cause) == ("open", False, "health")
    house.says["one"] = 200
    await house.clock.go()
    condition = breakers.condition(to)
    assert (condition.state, condition.admits) == ("open", True)
    await breakers.refresh()
    permit = await breakers.admit(to, "call_1", lease_s=5)
    assert permit is not None
    assert permit.state == "half_open"
    breakers.ended(permit, Ended("success"))
    assert breakers.condition(to).state == "closed"
    await breakers.close()


async def test_an_answer_that_takes_too_long_as_a_whole_is_late_and_let_go(house):
    house.checks.follow(snapshot(route("r", "one/a"), one=usual(failures=1, timeout=0.001)))
    await until(lambda: house.clock.slept)
    slow = Answer(200, hang=True)
    assert await house.after(slow) == [("trip", "one/a")]
    assert slow.released == 1
    assert house.events[0][2]["cause"] == "timeout:total"


async def test_the_checks_follow_the_settings(house):
    """A reload begins, changes and ends them; one that has not changed keeps its count."""
    first = snapshot(route("r", "one/a"), one=usual(failures=2), two=usual(), three=None)
    house.checks.follow(first)
    await until(lambda: len(house.clock.slept) == 2)
    house.says["one"] = 500
    await house.clock.go(2)
    second = snapshot(route("r", "one/b"), one=usual(failures=2), two=None, three=usual())
    house.checks.follow(second)
    await until(lambda: len([task for task in asyncio.all_tasks() if task.get_name().startswith("health of ")]) == 2)
    house.asked.clear()
    house.told.clear()
    await house.clock.go(2)
    assert sorted(request.url for request in house.asked) == ["http://one/v1/models", "http://three/v1/models"]
    assert house.told == [("trip", "one/b")]  # of the routes as they are now
    third = replace(second.providers["one"], base_url="http://elsewhere/v1")
    second.providers["one"] = third
    house.checks.follow(second)
    house.asked.clear()
    await until(lambda: house.asked)
    assert house.asked[0].url == "http://elsewhere/v1/models"


async def test_a_defect_of_an_adapter_is_told_and_opens_nothing(house):
    given = snapshot(route("r", "one/a"), one=usual(failures=1))

    class Broken:
        def health(self, _path: str, _api_key: Secret | None) -> Any:
            raise RuntimeError("a defect")

    broken: Any = Broken()
    given.providers["one"] = replace(given.providers["one"], adapter=broken)
    house.checks.follow(given)
    await until(lambda: house.events)
    assert house.events == [("error", "background_failed", {"task": "health of one", "error": "RuntimeError: a defect"})]
    assert house.told == []
    await house.clock.go()
    assert len(house.events) == 2


async def test_nothing_is_asked_once_everything_stops(house):
    house.checks.follow(snapshot(one=usual()))
    await until(lambda: house.clock.slept)
    await house.background.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("health of ")]
