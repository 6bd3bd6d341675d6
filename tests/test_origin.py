"""Where a call belongs, as its headers say: written by a caller, so checked and bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Origin
from gateway.errors import InvalidRequest
from gateway.origin import read_origin

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_headers_say_where_a_call_belongs():
    origin = read_origin({
        "X-Lockgate-Session": "s-1", "X-Lockgate-Run": "r/2", "X-Lockgate-Step": "plan", "X-Lockgate-Tags": "env=prod, cost.centre=42",
        "traceparent": TRACEPARENT,
    })
    assert origin == Origin(session="s-1", run="r/2", step="plan", tags={"env": "prod", "cost.centre": "42"}, traceparent=TRACEPARENT)


def test_a_call_without_headers_belongs_nowhere():
    assert read_origin({}) == Origin()


@pytest.mark.parametrize("name", ["", " ", "a b", "x" * 201, "naïve", "tab\tbed", "\x00"])
@pytest.mark.parametrize("header", ["X-Lockgate-Session", "X-Lockgate-Run", "X-Lockgate-Step"])
def test_a_name_that_could_forge_a_log_line_or_fill_it_is_refused(header, name):
    with pytest.raises(InvalidRequest, match=header):
        read_origin({header: name})


@pytest.mark.parametrize("tags", ["", "a", "=b", "a=b,", "a b=c", "a=\n", "a=" + "x" * 201, "k" * 65 + "=v", ",".join(f"k{i}=v" for i in range(21))])
def test_tags_that_are_not_pairs_are_refused(tags):
    with pytest.raises(InvalidRequest, match="X-Lockgate-Tags"):
        read_origin({"X-Lockgate-Tags": tags})


def test_twenty_tags_are_taken():
    assert len(read_origin({"X-Lockgate-Tags": ",".join(f"k{i}=v" for i in range(20))}).tags) == 20


@pytest.mark.parametrize("value", ["", "garbage", TRACEPARENT.upper(), "ff" + TRACEPARENT[2:], TRACEPARENT + "-x", "00-" + "0" * 32 + "-00f067aa0ba902b7-01"])
def test_a_wrong_traceparent_is_ignored_as_the_standard_asks(value):
    assert read_origin({"traceparent": value}).traceparent is None


@given(st.dictionaries(st.sampled_from(["X-Lockgate-Session", "X-Lockgate-Run", "X-Lockgate-Step", "X-Lockgate-Tags", "traceparent"]), st.text(max_size=300)))
def test_any_headers_are_read_or_refused(headers):
    try:
        origin = read_origin(headers)
    except InvalidRequest:
        return
    for name in (origin.session, origin.run, origin.step):
        assert name is None or (name.isascii() and name.isprintable() and 0 < len(name) <= 200)
