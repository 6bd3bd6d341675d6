"""Which sessions are stopped, asked of every call: from memory, as late as the next look at the store, whatever ails that."""

import pytest

from gateway.call import Call, Origin, Principal
from gateway.errors import SessionFrozen, StoreUnavailable
from gateway.frozen import Frozen
from gateway.session import SessionKey
from gateway.store.memory import MemoryStore
from gateway.store.session_protocol import SessionState

KEY = SessionKey("key_1", "s-1")


def call(session: str | None = KEY.id, principal: str = KEY.principal) -> Call:
    return Call("call_1", Principal(principal), "openai", "chat", "fast", {}, stream=False, size=1, received_ns=1, origin=Origin(session=session))


class Events:
    def __init__(self):
        self.told = []

    def event(self, level, name, **_fields):
        self.told.append((level, name))


class Desk:
    """A desk that can be made to fail, over the store's."""

    def __init__(self):
        self.real = MemoryStore("one").session_desk
        self.failure = None
        self.asked = []

    async def generation(self):
        self.asked.append("generation")
        if self.failure is not None:
            raise self.failure
        return await self.real.generation()

    async def states(self, since):
        self.asked.append(("states", since))
        return await self.real.states(since)

    async def say(self, state, key=KEY):
        return await self.real.set_state(key, state, author="ada", note="", now_ns=5)


@pytest.fixture
def desk():
    return Desk()


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def ended():
    return []


@pytest.fixture
def frozen(desk, events, ended):
    return Frozen(desk, events, lambda key, error: ended.append((key, error)))


async def test_a_frozen_session_begins_no_call_until_it_is_thawed(frozen, desk):
    frozen.check(call())
    await desk.say("frozen")
    frozen.check(call())  # nobody has looked yet
    await frozen.refresh()
    with pytest.raises(SessionFrozen, match="frozen this session"):
        frozen.check(call())
    await desk.say("active")
    await frozen.refresh()
    frozen.check(call())


async def test_it_is_that_session_and_no_other(frozen, desk):
    await desk.say("frozen")
    await frozen.refresh()
    for other in (call(None), call("s-2"), call(principal="key_2"), call("S-1")):
        frozen.check(other)


async def test_a_killed_session_is_ended_once_and_stays_so(frozen, desk, ended):
    await desk.say("killed")
    for _ in range(3):
        await frozen.refresh()
    assert [key for key, _error in ended] == [KEY]
    assert isinstance(ended[0][1], SessionFrozen)
    with pytest.raises(SessionFrozen, match="ended this session"):
        frozen.check(call())


async def test_freezing_ends_nothing_that_is_under_way(frozen, desk, ended):
    await desk.say("frozen")
    await frozen.refresh()
    assert ended == []


async def test_what_this_process_has_said_counts_here_at_once(frozen, desk, ended):
    frozen.learn(await desk.say("killed"))
    with pytest.raises(SessionFrozen):
        frozen.check(call())
    await frozen.refresh()
    assert len(ended) == 1


async def test_a_look_that_comes_late_brings_nothing_back(frozen, desk):
    """Between reading the store and learning of it somebody may have thawed the session, here."""
    old = await desk.say("frozen")
    frozen.learn(await desk.say("active"))
    frozen.learn(old)
    frozen.check(call())
    frozen.learn(SessionState(KEY))  # of no change at all
    frozen.check(call())


async def test_a_look_asks_for_what_has_changed_and_only_where_something_has(frozen, desk):
    await desk.say("frozen")
    await frozen.refresh()
    await frozen.refresh()
    await desk.say("frozen", SessionKey("key_1", "s-2"))
    await frozen.refresh()
    assert desk.asked == ["generation", ("states", 0), "generation", "generation", ("states", 1)]


async def test_while_the_store_cannot_be_read_what_was_known_holds_and_it_is_told_once(frozen, desk, events):
    await desk.say("frozen")
    await frozen.refresh()
    desk.failure = StoreUnavailable("down")
    for _ in range(3):
        await frozen.refresh()
    with pytest.raises(SessionFrozen):
        frozen.check(call())
    assert events.told == [("error", "sessions_not_read")]
    desk.failure = None
    await desk.say("active")
    await frozen.refresh()
    frozen.check(call())
    desk.failure = StoreUnavailable("down again")
    await frozen.refresh()
    assert len(events.told) == 2
    desk.failure = None
    await frozen.refresh()  # it is well, and nothing has changed
    desk.failure = StoreUnavailable("and again")
    await frozen.refresh()
    assert len(events.told) == 3


async def test_its_repr_tells_its_state(frozen, desk):
    await desk.say("frozen")
    await frozen.refresh()
    assert repr(frozen) == "Frozen(1 known, generation=1, failing=False)"
