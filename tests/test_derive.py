"""Sessions out of what clients send anyway: the first hint in the configured order, bounded, and never one that a header could name."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Call, Origin, Principal
from gateway.derive import PREFIXES, answer_name, check_named, hint_of, in_session, session_name
from gateway.errors import InvalidRequest, StoreUnavailable
from gateway.origin import read_origin
from gateway.people_config import SessionsConfig
from gateway.store.scrub import Scrubber

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACED = Origin(traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
ALL = ("metadata", "conversation", "previous", "user", "trace")
HINTS = {"metadata": "m1", "conversation": "c1", "previous": "r1", "user": "ada"}
KEY = f"lgk_abcdefghijkl_{'s' * 32}"
scrub = Scrubber(()).text


def call(origin: Origin = Origin(), principal: str = "key_1") -> Call:  # noqa: B008 - it is frozen
    return Call("call_1", Principal(principal), "openai", "chat", "fast", {}, stream=False, size=1, received_ns=1, origin=origin)


class Links:
    """What is on record of answers; asked about each only where a call goes on from one."""

    def __init__(self, known=None):
        self.known = known or {}
        self.asked = []

    async def linked(self, principal, answer_id):
        self.asked.append((principal, answer_id))
        return self.known.get((principal, answer_id))


@pytest.mark.parametrize(("order", "session"), [
    (ALL, "meta:m1"), (("conversation", "metadata"), "conv:c1"), (("previous",), "resp:r1"), (("user", "trace"), "user:ada"),
    (("trace", "user"), f"trace:{TRACE}"), ((), None)])
async def test_the_first_of_the_configured_kinds_that_is_there_names_the_session(order, session):
    placed = await in_session(call(TRACED), HINTS, order, Links().linked, scrub)
    assert placed.origin.session == session
    assert placed.origin.traceparent == TRACED.traceparent


@pytest.mark.parametrize("left_out", ALL)
def test_what_is_not_there_is_passed_over(left_out):
    origin = Origin() if left_out == "trace" else TRACED
    hints = {name: value for name, value in HINTS.items() if name != left_out}
    wanted = ALL[1] if left_out == ALL[0] else ALL[0]
    assert hint_of(origin, hints, ALL) == (wanted, HINTS[wanted])
    assert hint_of(origin, hints, (left_out,)) is None


async def test_a_session_that_a_header_names_is_left_as_it_is_and_nobody_is_asked():
    links = Links({("key_1", "r1"): "s-9"})
    named = call(Origin(session="s-1", traceparent=TRACED.traceparent))
    assert await in_session(named, HINTS, ALL, links.linked, scrub) is named
    plain = call()
    assert await in_session(plain, {}, ALL, links.linked, scrub) is plain
    assert await in_session(call(TRACED), {}, ("user",), links.linked, scrub) == call(TRACED)
    assert links.asked == []


async def test_one_that_goes_on_from_an_answer_is_in_that_answers_session_and_else_begins_one():
    """A chain begins at the first answer that somebody goes on from; whoever goes on from the same answer is in the same session."""
    links = Links({("key_1", "r2"): "resp:r1", ("key_1", "h1"): "s-1"})
    placed = [await in_session(call(), {"previous": each}, ("previous",), links.linked, scrub) for each in ("r1", "r2", "h1", "r1")]
    assert [each.origin.session for each in placed] == ["resp:r1", "resp:r1", "s-1", "resp:r1"]
    stranger = await in_session(call(principal="key_2"), {"previous": "h1"}, ("previous",), links.linked, scrub)
    assert stranger.origin.session == "resp:h1"


async def test_where_nobody_can_say_which_session_it_was_the_call_does_not_go_on():
    async def down(*_asked):
        raise StoreUnavailable("down")

    with pytest.raises(StoreUnavailable):
        await in_session(call(), {"previous": "r1"}, ("previous",), down, scrub)


@pytest.mark.parametrize("value", ["a b", "naïve", "x" * 200, "tab\tbed", "\x00", "\u202eada", "\ud800", KEY, f"x{KEY}", "\x1b[2J"])
@pytest.mark.parametrize("kind", ["metadata", "conversation", "previous", "user"])
def test_what_does_not_look_like_a_name_stands_there_as_its_digest(kind, value):
    """None of it gets into a log, a label of a metric or a terminal as it is; and it is the same session every time."""
    name = session_name(kind, value, scrub)
    assert name == f"{PREFIXES[kind]}sha256:{hashlib.sha256(value.encode(errors='surrogatepass')).hexdigest()}"
    assert session_name(kind, value, scrub) == name
    assert scrub(name) == name


@given(st.sampled_from(ALL[:-1]), st.text(min_size=1, max_size=1000))
def test_every_derived_name_is_bounded_and_printable_and_names_its_kind(kind, value):
    name = session_name(kind, value, scrub)
    assert name.startswith(PREFIXES[kind])
    assert name.isascii()
    assert name.isprintable()
    assert " " not in name
    assert len(name) <= 200


@given(st.text(min_size=1, max_size=300), st.text(min_size=1, max_size=300))
def test_two_values_are_two_sessions(one, other):
    assert (session_name("user", one, scrub) == session_name("user", other, scrub)) is (one == other)


def test_an_answer_is_looked_up_under_the_name_that_it_was_noted_under():
    assert answer_name("chatcmpl-1", scrub) == "chatcmpl-1"
    assert answer_name("a b", scrub) == answer_name("a b", scrub) != answer_name("a c", scrub)
    assert len(answer_name("x" * 1000, scrub)) == len("sha256:") + 64


@pytest.mark.parametrize("kind", ALL)
def test_no_header_names_a_session_that_is_derived(kind):
    """Else what an SDK happens to send could be taken for a session that somebody has named on purpose."""
    session = f"{PREFIXES[kind]}x"
    assert read_origin({"X-Lockgate-Session": session}).session == session
    with pytest.raises(InvalidRequest, match="X-Lockgate-Session"):
        check_named(session, (kind,))
    check_named(session, tuple(each for each in ALL if each != kind))


@pytest.mark.parametrize("session", [None, "s-1", "metadata:x", "META:x", "xmeta:x", "user"])
def test_other_names_are_anybodys_to_give(session):
    check_named(session, ALL)


def test_every_kind_that_can_be_configured_has_a_prefix():
    assert set(PREFIXES) == set(SessionsConfig.model_validate({"derive": list(ALL)}).derive)
    assert SessionsConfig().derive == ("metadata", "conversation", "previous")
