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
    ("status=502;garbage=html", Fault(status=502, garbage="html")),
    ("length_off=-10;content_type=text/html", Fault(length_off=-10, content_type="text/html")),
    ("length_off=+10;chunk_bytes=3", Fault(length_off=10, chunk_bytes=3)),
    ("content=a = b;finish_reason=content_filter;logprob=-0.3", Fault(content="a = b", finish_reason="content_filter", logprob=-0.3)),
    ('{"content": "a; b\\n", "logprob": 0, "length_off": 1, "content_type": "text/html; charset=utf-8"}',
     Fault(content="a; b\n", logprob=0.0, length_off=1, content_type="text/html; charset=utf-8")),
    ("content=", Fault(content="")),
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
    ("status=500;cut_after_chunks=0", "cannot be combined"), ("status=500;garbage=json;empty", "cannot be combined"),
    ("status=500;garbage=json;garbage_after_chunks=1", "without status"), ("length_off=1;cut_after_chunks=1", "cannot be combined"),
    ("length_off=0", "other than 0"), ("length_off=1.5", "whole number of bytes"), ("length_off=ten", "expected a number"),
    ('{"length_off": true}', "expected a number"), ("length_off=99999999999", "either way"), ("content", "expected text"),
    ('{"content": 1}', "expected text"), ("content=" + "x" * 65537, "at most 65536"), ("content=\udcff", "UTF-8"),
    ("content_type=", "content type"), ("content_type=a\r\nb: c", "content type"), ('{"content_type": 1}', "content type"),
    ("logprob=0.1", "logarithm"), ("logprob=-10000", "logarithm"), ('{"logprob": NaN}', "not JSON"), ("logprob=-inf", "expected a number"),
    ('{"finish_reason": null}', "expected text"),
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
