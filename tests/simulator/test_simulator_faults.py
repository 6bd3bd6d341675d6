"""How a fault is written down."""

from pathlib import Path

import pytest

from gateway.simulator.faults import FAULT_KEYS, NO_FAULT, Fault, duration_s, parse_fault


@pytest.mark.parametrize(("text", "fault"), [
    ("status=503;retry_after=2;times=3", Fault(status=503, retry_after_s=2.0, times=3)),
    ('{"status": 429, "retry_after": "500ms"}', Fault(status=429, retry_after_s=0.5)),
    ("hang", Fault(hang=True)),
    ("reset=true", Fault(reset=True)),
    (" garbage ; garbage_after_chunks = 2 ", Fault(garbage="json", garbage_after_chunks=2)),
    ("garbage=html", Fault(garbage="html")),
    ("cut_after_chunks=0;delay_first_token=1.5s;delay_between_tokens=20ms;delay_headers=1m",
     Fault(cut_after_chunks=0, delay_first_token_s=1.5, delay_between_tokens_s=0.02, delay_headers_s=60.0)),
    ("huge=1MiB;no_usage;drop_done;chunk_bytes=7", Fault(huge=1024 * 1024, no_usage=True, drop_done=True, chunk_bytes=7)),
    ("end_after_chunks=1", Fault(end_after_chunks=1)),
    ("stall_after_chunks=1", Fault(stall_after_chunks=1)),
    ("error_event_after_chunks=1", Fault(error_event_after_chunks=1)),
    ("empty", Fault(empty=True)),
    ("ignore_limits", Fault(ignore_limits=True)),
    ("", NO_FAULT),
])
def test_a_fault_is_written_as_pairs_or_as_json(text, fault):
    assert parse_fault(text) == fault


@pytest.mark.parametrize(("text", "words"), [
    ("statis=503", "did you mean 'status'"), ("zebra=1", "known: chunk_bytes"), ("status=99", "200 to 599"),
    ("status=abc", "whole number"), ("status", "whole number"), ("times=0", "at least 1"), ("garbage=mud", "json, bytes, shape"),
    ("hang=maybe", "true or false"), ("delay_headers=2h", "at most an hour"), ("delay_headers=-1", "duration"),
    ("huge=1GiB", "size"), ("huge=300MiB", "256MiB"), ("chunk_bytes=0", "at least 1"), ("{", "not JSON"),
    ("status=500;hang", "cannot be combined"), ("retry_after=1", "needs status"), ("garbage_after_chunks=1", "needs garbage"),
    ('{"status": true}', "whole number"), ('{"hang": 1}', "true or false"), ('{"delay_headers": true}', "duration"),
    ('{"status": null}', "whole number"), ('{"hang": [1]}', "true or false"), ("status=" + "9" * 400, "whole number"),
])
def test_what_cannot_be_read_says_why(text, words):
    with pytest.raises(ValueError, match=words):
        parse_fault(text)


def test_durations_are_numbers_of_seconds_or_have_a_unit():
    assert [duration_s(value) for value in (2, 0.5, "2", "250ms", "1.5s", "1m", "1h")] == [2, 0.5, 2, 0.25, 1.5, 60, 3600]


def test_a_pace_fills_only_the_delays_that_a_fault_leaves_open():
    pace = Fault(delay_first_token_s=1.0, delay_between_tokens_s=0.1)
    assert Fault(delay_first_token_s=0.0).paced(pace) == Fault(delay_first_token_s=0.0, delay_between_tokens_s=0.1)
    assert NO_FAULT.paced(NO_FAULT) is NO_FAULT


def test_the_log_shows_only_what_a_fault_sets():
    assert Fault(status=500, times=2).to_json() == {"status": 500, "times": 2}
    assert Fault(cut_after_chunks=0).to_json() == {"cut_after_chunks": 0}


def test_every_key_is_documented():
    reference = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text("utf-8")
    assert [key for key in sorted(FAULT_KEYS) if f"`{key}" not in reference] == []
