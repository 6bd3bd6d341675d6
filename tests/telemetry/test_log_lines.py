"""One call is one line, whatever is in it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.call import CallRecord, Outcome, Principal, Usage
from gateway.telemetry.clean import Cleaner
from gateway.telemetry.log_lines import CALL_FIELDS, call_fields, call_level, event_fields, json_line, text_line


@pytest.fixture
def clean(scrub) -> Cleaner:
    return Cleaner(scrub)


def fields_of(record: CallRecord, clean: Cleaner) -> dict[str, Any]:
    return call_fields(record, call_level(record), clean)


def test_a_call_says_who_what_where_and_what_it_cost(record, clean):
    assert orjson.loads(json_line(fields_of(record, clean))) == {
        "time": "2026-09-21T14:13:20.373456Z", "level": "info", "event": "call", "call": "call_01", "key": "key_01",
        "team": "search", "operation": "chat", "route": "small", "target": "second/small-1", "stream": True,
        "outcome": "completed", "status": 200, "code": "", "decision": "allow", "rule": "allow-small", "labels": ["seen"],
        "verdicts": [], "attempts": 2, "tries": ["first/small-1 failed status:503", "second/small-1 fallback succeeded"], "part_of": "", "ms": 250.0, "first_byte_ms": 90.0,
        "tokens": {"input": 30, "output": 12, "cache_read": 10, "cache_write": 4, "reasoning": 5, "input_audio": 2,
                   "output_audio": 1},
        "cost_usd": "0.001234567", "estimated_usd": None, "reserved_usd": None, "account": "", "session": "s-1", "run": "r-1", "step": "3", "message": "",
    }


def test_the_fields_are_the_documented_ones_in_their_order(record, refused, clean):
    assert list(fields_of(record, clean)) == list(fields_of(refused, clean)) == list(CALL_FIELDS)


def test_what_was_decided_on_the_answer_is_told_in_short(record, clean, secret):
    verdicts = tuple({"phase": "tool_call", "subject": f"mail.send{n}", "decision": "deny", "rule": "no-mail", "reasons": []} for n in range(20))
    record = replace(record, verdicts=verdicts, labels=("seen", "late"), answer_labels=("late", "secret"))
    fields = fields_of(record, clean)
    assert fields["labels"] == ["seen", "late", "secret"]
    assert fields["verdicts"] == [f"tool_call:mail.send{n}:deny:no-mail" for n in range(8)]
    assert "verdicts=tool_call:mail.send0:deny:no-mail,tool_call" in text_line(fields).decode()
    hostile = ({"phase": "response", "subject": "x" * 10_000, "decision": "held", "rule": secret},)
    assert fields_of(replace(record, verdicts=hostile), clean)["verdicts"] == [
        f"response:{'x' * 64}… (10000 characters):held:********"]


def test_every_try_is_told_in_short_where_there_was_more_than_one(record, attempt, clean):
    """One says no more than the line itself; a line is to stay short."""
    assert fields_of(replace(record, attempts=(attempt,)), clean)["tries"] == []
    many = tuple(replace(attempt, n=n, why="retry") for n in range(1, 20))
    assert fields_of(replace(record, attempts=many), clean)["tries"] == ["second/small-1 retry succeeded"] * 8
    assert 'tries="first/small-1 failed status:503,second/small-1 fallback succeeded"' in text_line(fields_of(record, clean)).decode()


def test_a_call_of_the_gateways_own_names_the_call_that_it_was_made_for(record, clean):
    assert fields_of(replace(record, part_of="call_00"), clean)["part_of"] == "call_00"


def test_a_call_that_went_nowhere_has_nulls_and_not_zeros(refused, clean):
    fields = fields_of(replace(refused, cost_nusd=None), clean)
    assert [fields[name] for name in ("target", "first_byte_ms", "tokens", "cost_usd")] == [None] * 4


def test_our_own_count_of_tokens_is_marked(record, clean):
    assert fields_of(replace(record, usage=Usage(1, 2, estimated=True)), clean)["tokens"] == {
        "input": 1, "output": 2, "estimated": True}


def test_what_a_call_costs_by_our_own_count_is_told_apart(record, attempt, clean):
    """An attempt before the last may be the one whose provider did not say."""
    first = replace(attempt, n=1, usage=Usage(9, 9, estimated=True), cost_nusd=500)
    told = fields_of(replace(record, attempts=(first, attempt), cost_nusd=1_235_067), clean)
    assert (told["cost_usd"], told["estimated_usd"]) == ("0.001235067", "0.0000005")


def test_a_call_that_a_budget_refused_names_the_account_without_secrets(refused, clean, secret):
    """The subject of a user's account is the caller's own word."""
    told = fields_of(replace(refused, code="budget_exceeded", account=f"per-user/key_01/{secret}", reserved_nusd=12_000), clean)
    assert (told["account"], told["reserved_usd"]) == ("per-user/key_01/********", "0.000012")
    assert "account=per-user/key_01/********" in text_line(told).decode()
    forged = fields_of(replace(refused, account="b/key_01/x\n{}" + "y" * 5000), clean)
    assert json_line(forged).count(b"\n") == text_line(forged).count(b"\n") == 1
    assert len(forged["account"]) < 300


@pytest.mark.parametrize(("outcome", "code", "level"), [
    (Outcome.COMPLETED, "", "info"), (Outcome.REFUSED, "forbidden", "info"), (Outcome.CANCELLED, "client_closed", "info"),
    (Outcome.FAILED, "upstream_failed", "warning"), (Outcome.CUT, "upstream_failed", "warning"),
    (Outcome.WITHHELD, "forbidden", "info"), (Outcome.INTERRUPTED, "", "warning"), (Outcome.FAILED, "internal_error", "error"),
])
def test_the_level_says_who_should_look(record, outcome, code, level):
    assert call_level(replace(record, outcome=outcome, code=code)) == level


def test_everything_a_caller_can_write_is_scrubbed(record, clean, secret):
    origin = replace(record.origin, session=secret, run=secret, step=secret)
    spoken = replace(record, route=secret, message=f"{secret} is not valid", origin=origin, labels=(secret,),
                     principal=Principal(id=secret, team=secret))
    for line in (json_line(fields_of(spoken, clean)), text_line(fields_of(spoken, clean))):
        assert secret.encode() not in line


HOSTILE = "a\nb\r\x00\x1b[2J\x07\x7f\x9b31m\u0085\u2028\u2029\u202e\u2066end"


@pytest.mark.parametrize("line", [json_line, text_line])
def test_control_characters_leave_as_escapes(record, clean, line):
    """A caller who can begin a new line, or move a terminal's cursor, can write what looks like another call's line."""
    origin = replace(record.origin, session=HOSTILE)
    shown = line(fields_of(replace(record, route=HOSTILE, message=HOSTILE, origin=origin), clean)).decode()
    assert shown.endswith("\n")
    assert shown[:-1].isprintable()
    assert "\\u009b31m" in shown


def test_json_gives_back_exactly_what_was_escaped(record, clean):
    assert orjson.loads(json_line(fields_of(replace(record, message=HOSTILE), clean)))["message"] == HOSTILE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=[]), max_size=300))
@pytest.mark.parametrize("line", [json_line, text_line])
def test_any_text_makes_exactly_one_line(record, clean, line, text):
    shown: bytes = line(fields_of(replace(record, route=text, message=text), clean))
    assert len(shown.decode().splitlines()) == 1


def test_text_is_for_people_and_leaves_out_what_is_empty(refused, clean):
    assert text_line(fields_of(refused, clean)).decode() == (
        "2026-09-21T14:13:20.373456Z info    call call=call_02 key=key_01 team=search operation=chat route=small "
        'outcome=refused status=403 code=forbidden decision=deny rule=night attempts=0 ms=250.0 cost_usd=0 session=s-1 '
        'run=r-1 step=3 message="Not at night."\n'
    )


def test_text_shows_tokens_and_other_alphabets_as_they_are(record, clean):
    shown = text_line(fields_of(replace(record, message='größer "als" erlaubt'), clean)).decode()
    assert "tokens=input:30,output:12,cache_read:10" in shown
    assert 'message="größer \\"als\\" erlaubt"' in shown
    assert "labels=seen " in shown


def test_a_value_cannot_pretend_to_be_another_field(record, clean):
    shown = text_line(fields_of(replace(record, route="small cost_usd=0"), clean)).decode()
    assert 'route="small cost_usd=0"' in shown


def event(clean: Cleaner, **fields: object) -> Mapping[str, Any]:
    loaded: Mapping[str, Any] = orjson.loads(json_line(event_fields("error", "config_error", 0, fields, clean)))
    return loaded


def test_an_event_has_a_time_a_level_a_name_and_its_own_fields(clean):
    assert event(clean, file="a.toml", line=3, ratio=0.5, kept=True, hint=None) == {
        "time": "1970-01-01T00:00:00.000000Z", "level": "error", "event": "config_error", "file": "a.toml", "line": 3,
        "ratio": 0.5, "kept": True, "hint": None}


def test_an_event_is_scrubbed_in_depth_and_cannot_name_itself(clean, secret):
    assert event(clean, problems=[secret, ("b", 1)], error=ValueError(secret), time="then", event="call") == {
        "time": "1970-01-01T00:00:00.000000Z", "level": "error", "event": "config_error",
        "problems": ["********", ["b", 1]], "error": "********"}
