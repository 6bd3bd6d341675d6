"""A record becomes a line, counts and spans without anybody waiting for it."""

import asyncio
import os
import sys
from dataclasses import replace

import pytest

from gateway.call import Outcome, Usage
from gateway.errors import SetupError
from gateway.telemetry import OtlpSettings, Telemetry, fd_writer
from gateway.telemetry.log_lines import CALL_FIELDS


async def flushed(telemetry: Telemetry) -> None:
    assert await asyncio.to_thread(telemetry.flush, 30)


async def test_a_record_becomes_one_line_and_its_counts(start, lines, record):
    telemetry = await start()
    telemetry.publish(record)
    await flushed(telemetry)
    assert [line["call"] for line in lines.json()] == ["call_01"]
    assert set(lines.json()[0]) == set(CALL_FIELDS)
    assert b'lockgate_calls_total{code="",outcome="completed",route="small",team="search"} 1.0' in telemetry.metrics()


async def test_a_scrape_has_counted_every_call_that_was_answered_before_it(start, record):
    """A client that has its answer and then asks for the metrics must find its call there."""
    telemetry = await start()
    telemetry.publish(record)
    assert b'outcome="completed",route="small",team="search"} 1.0' in await telemetry.scrape()


async def test_lines_come_in_the_order_of_their_records(start, lines, record):
    telemetry = await start()
    for n in range(100):
        telemetry.publish(replace(record, id=f"call_{n}"))
    await flushed(telemetry)
    assert [line["call"] for line in lines.json()] == [f"call_{n}" for n in range(100)]


async def test_what_was_handed_over_before_the_start_is_not_lost(lines, record, scrub, clock):
    telemetry = Telemetry(log_format="json", log_level="info", write=lines.write, scrub=scrub, clock=clock)
    telemetry.event("info", "starting", host="127.0.0.1")
    assert not telemetry.flush(0)
    await telemetry.start()
    telemetry.publish(record)
    assert await telemetry.close()
    assert [line["event"] for line in lines.json()] == ["starting", "call"]


async def test_close_writes_everything_that_waits(start, lines, record):
    telemetry = await start()
    for _ in range(500):
        telemetry.publish(record)
    assert await telemetry.close()
    assert len(lines.json()) == 500


async def test_after_close_records_are_dropped_and_counted(start, lines, record):
    telemetry = await start()
    await telemetry.close()
    telemetry.publish(record)
    assert lines.data == b""
    assert b'lockgate_telemetry_dropped_total{view="queue"} 1.0' in telemetry.metrics()


async def test_closing_what_never_ran_is_nothing(lines, scrub, clock):
    assert await Telemetry(log_format="text", log_level="error", write=lines.write, scrub=scrub, clock=clock).close()


async def test_a_full_queue_drops_the_new_records_and_counts_them(start, lines, record):
    telemetry = await start(queue=10)
    lines.gate.clear()
    telemetry.publish(record)
    assert await asyncio.to_thread(lines.waiting.wait, 30)  # the thread is stuck in a write, its queue is empty
    for _ in range(25):
        telemetry.publish(record)
    assert b'lockgate_telemetry_dropped_total{view="queue"} 15.0' in telemetry.metrics()
    lines.gate.set()
    await flushed(telemetry)
    assert len(lines.json()) == 11


async def test_a_reader_that_stalls_holds_up_neither_a_call_nor_the_end(start, lines, record):
    telemetry = await start()
    lines.gate.clear()
    telemetry.publish(record)
    assert await asyncio.to_thread(lines.waiting.wait, 30)
    telemetry.publish(record)
    assert not await telemetry.close(timeout_s=0.01)


@pytest.mark.parametrize("error", [BrokenPipeError("gone"), ValueError("write to closed file")])
async def test_a_line_that_cannot_be_written_is_counted_and_the_next_one_is_tried(start, lines, record, error):
    telemetry = await start()
    lines.fail = error
    telemetry.publish(record)
    await flushed(telemetry)
    lines.fail = None
    telemetry.publish(record)
    await flushed(telemetry)
    assert len(lines.json()) == 1
    assert b'lockgate_telemetry_dropped_total{view="log"} 1.0' in telemetry.metrics()


async def test_an_absurd_record_costs_its_own_views_and_no_other(start, lines, record, attempt):
    telemetry = await start()
    telemetry.publish(replace(record, attempts=(replace(attempt, usage=Usage(input_tokens=-1)),)))
    telemetry.publish(replace(record, usage=Usage(input_tokens=2**70)))
    telemetry.publish(replace(record, id="call_03"))
    await flushed(telemetry)
    assert [line["call"] for line in lines.json()] == ["call_01", "call_03"]
    shown = telemetry.metrics()
    assert b'lockgate_telemetry_dropped_total{view="metrics"} 1.0' in shown
    assert b'lockgate_telemetry_dropped_total{view="log"} 1.0' in shown


async def test_a_megabyte_of_message_is_one_short_line(start, lines, record):
    telemetry = await start()
    telemetry.publish(replace(record, message="m" * 1_000_000))
    await flushed(telemetry)
    assert len(lines.data) < 4_096


async def test_writes_stay_small_enough_for_a_pipe_shared_by_several_processes(start, lines, record):
    telemetry = await start()
    for _ in range(200):
        telemetry.publish(record)
    telemetry.event("error", "defect", traceback="t" * 7_000)
    await flushed(telemetry)
    assert len(lines.json()) == 201
    assert max(lines.writes[:-1]) <= 4_096
    assert len(lines.writes) < 100  # and yet not one write a line


async def test_calls_below_the_level_are_counted_but_not_logged(start, lines, record):
    telemetry = await start(log_level="warning")
    telemetry.publish(record)
    telemetry.publish(replace(record, id="call_04", outcome=Outcome.FAILED, code="upstream_failed"))
    telemetry.event("info", "draining")
    telemetry.event("error", "store_failed")
    await flushed(telemetry)
    assert [(line["level"], line["event"]) for line in lines.json()] == [("warning", "call"), ("error", "store_failed")]
    assert b'outcome="completed",route="small",team="search"} 1.0' in telemetry.metrics()


async def test_a_reload_that_failed_shows_at_once(start):
    telemetry = await start()
    telemetry.reloaded(ok=False)
    assert b"lockgate_config_stale 1.0" in telemetry.metrics()
    assert b'lockgate_reloads_total{result="failed"} 1.0' in telemetry.metrics()


async def test_what_budgets_warn_of_is_a_line_and_a_count_even_where_lines_are_not_wanted(start, lines, secret):
    """The log's level is about lines: an alert on the metric must fire all the same."""
    loud, quiet = await start(), await start(log_level="error")
    for telemetry in (loud, quiet):
        telemetry.soft_limit(f"per-user/key_01/{secret}", 2_000_000, call="call_01")
        telemetry.overrun(["per-user/key_01/ann", "all/all"], 1, call="call_01")
        shown = (await telemetry.scrape()).decode()
        assert 'lockgate_budget_soft_limits_total{budget="per-user"} 1.0' in shown
        assert 'lockgate_budget_overrun_usd_total{budget="all"} 1e-09' in shown
    soft, over = lines.json()
    assert (soft["event"], soft["level"], soft["account"], soft["soft_usd"]) == (
        "budget_soft_limit", "warning", "per-user/key_01/********", "0.002")
    assert (over["event"], over["accounts"], over["beyond_usd"], over["call"]) == (
        "budget_overrun", ["per-user/key_01/ann", "all/all"], "0.000000001", "call_01")


async def test_what_happens_outside_of_calls_is_counted_at_once(start):
    """Of each there is a counter to alert on."""
    telemetry = await start()
    telemetry.retries_spent("small")
    telemetry.breaker("one/small-1", "open")
    telemetry.breaker_tripped("one/small-1")
    shown = telemetry.metrics().decode()
    for line in ('lockgate_retry_budget_exhausted_total{route="small"} 1.0', 'lockgate_breaker_state{target="one/small-1"} 2.0',
                 'lockgate_breaker_trips_total{target="one/small-1"} 1.0'):
        assert line in shown


async def test_text_is_the_other_format(start, lines, record):
    telemetry = await start(log_format="text")
    telemetry.publish(record)
    await flushed(telemetry)
    assert lines.data.startswith(b"2026-09-21T14:13:20.373456Z info    call call=call_01 ")


async def test_two_gateways_in_one_process_do_not_mix(start, lines, record):
    one, two = await start(), await start()
    one.in_flight(3)
    one.publish(record)
    await flushed(one)
    await flushed(two)
    assert len(lines.json()) == 1
    assert b"search" not in two.metrics()
    assert b"lockgate_in_flight_calls 0.0" in two.metrics()


async def test_spans_without_their_extra_installed_say_what_to_install(lines, scrub, clock, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    telemetry = Telemetry(log_format="json", log_level="info", write=lines.write, scrub=scrub, clock=clock,
                          otlp=OtlpSettings("http://127.0.0.1:9/v1/traces"))
    with pytest.raises(SetupError, match=r"pip install lockgate\[otlp\]"):
        await telemetry.start()


def test_a_reader_that_stalls_is_given_up_on_in_the_end():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as reader:
        os.set_blocking(write, False)
        with pytest.raises(BlockingIOError):
            fd_writer(write, patience_s=0.01)(b"x" * 10_000_000)
        os.close(write)
        assert 0 < len(reader.read()) < 10_000_000


def test_a_descriptor_that_does_not_block_is_waited_for():
    read, write = os.pipe()
    os.set_blocking(write, False)
    with os.fdopen(read, "rb") as reader, os.fdopen(write, "wb", buffering=0) as writer:
        filled = 0
        while True:
            try:
                filled += os.write(write, b"x" * 65_536)
            except BlockingIOError:
                break
        assert len(os.read(read, 65_536)) > 4_096
        fd_writer(writer.fileno())(b"line\n")
        writer.close()
        assert reader.read().endswith(b"line\n")
