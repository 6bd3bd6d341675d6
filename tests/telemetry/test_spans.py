"""Spans say what the record says, under the caller's trace, and are bounded."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode

from gateway.call import AttemptEnd, CallRecord, Outcome, Usage
from gateway.telemetry import genai_attributes as names
from gateway.telemetry.clean import Cleaner
from gateway.telemetry.spans import Spans

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Export:
    """Makes the spans of records and gives back what an exporter would have got."""

    def __init__(self, scrub: Callable[[str], str]) -> None:
        self.exporter = InMemorySpanExporter()
        self.dropped: list[int] = []
        self.spans = Spans(self.exporter, {"service.name": "edge", "service.version": "0.1.0"}, Cleaner(scrub), self.dropped.append)

    def __call__(self, record: CallRecord, route: str = "small") -> list[ReadableSpan]:
        """The call's span first, then its attempts."""
        self.spans.add(record, route)
        self.spans.close()
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)


@pytest.fixture
def export(scrub) -> Iterator[Export]:
    made = Export(scrub)
    yield made
    made.spans.close()


def traced(record: CallRecord, traceparent: str) -> CallRecord:
    return replace(record, origin=replace(record.origin, traceparent=traceparent))


def test_a_call_has_a_span_with_its_times_and_one_for_every_attempt(export, record):
    root, first, second = export(record)
    assert [span.name for span in (root, first, second)] == ["chat small", "chat small-1", "chat small-1"]
    assert [span.kind for span in (root, first, second)] == [SpanKind.SERVER, SpanKind.CLIENT, SpanKind.CLIENT]
    assert (root.start_time, root.end_time) == (record.received_ns, record.ended_ns)
    for span, attempt in zip((first, second), record.attempts, strict=True):
        assert (span.start_time, span.end_time) == (attempt.started_ns, attempt.ended_ns)
        assert span.parent is not None
        assert span.parent.span_id == root.get_span_context().span_id


def test_a_call_of_a_tool_names_the_tool_and_no_model(export, record):
    root, *_attempts = export(replace(record, operation="tool", route="bank.pay"))
    assert root.name.startswith("execute_tool")
    assert (root.attributes["gen_ai.operation.name"], root.attributes["gen_ai.tool.name"]) == ("execute_tool", "bank.pay")
    assert "gen_ai.request.model" not in root.attributes


def test_an_answer_that_was_withheld_is_no_error_of_the_gateway(export, record):
    root, *_attempts = export(replace(record, outcome=Outcome.WITHHELD, status=403, code="forbidden"))
    assert root.status.status_code is StatusCode.UNSET


def test_a_call_says_everything_that_is_documented(export, record):
    failed = replace(record, outcome=Outcome.CUT, code="upstream_failed", message="It broke.", status=200, account="b/blue",
                     reserved_nusd=2_000_000, plan={"strategy": "priority", "task": "code"}, part_of="call_00")
    failed = replace(failed, attempts=tuple(
        replace(each, usage=replace(each.usage, estimated=True)) if each.usage else each for each in record.attempts))
    root, _first, second = export(failed)
    assert dict(root.attributes or {}) == {
        "gen_ai.operation.name": "chat", "gen_ai.request.model": "small", "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ("stop",), "gen_ai.response.time_to_first_chunk": 0.09,
        "gen_ai.conversation.id": "s-1", "gen_ai.usage.input_tokens": 30, "gen_ai.usage.output_tokens": 12,
        "gen_ai.usage.cache_read.input_tokens": 10, "gen_ai.usage.cache_creation.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 5, "http.response.status_code": 200, "error.type": "upstream_failed",
        "lockgate.call.id": "call_01", "lockgate.key.id": "key_01", "lockgate.team": "search", "lockgate.route": "small",
        "lockgate.outcome": "cut", "lockgate.decision": "allow", "lockgate.rule": "allow-small",
        "lockgate.bundle": "sha256:aa", "lockgate.run": "r-1", "lockgate.step": "3", "lockgate.cost_usd": "0.001234567",
        "lockgate.usage.estimated": True, "lockgate.reserved_usd": "0.002", "lockgate.budget.account": "b/blue", "lockgate.attempts": 2,
        "lockgate.task": "code", "lockgate.part_of": "call_00",
    }
    assert set(root.attributes or {}) | {names.TOOL} == set(names.CALL_ATTRIBUTES)
    assert set(second.attributes or {}) | {names.ERROR_TYPE} == set(names.ATTEMPT_ATTRIBUTES)
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, "It broke.")


def test_an_account_on_a_span_holds_no_secret(export, record, secret):
    root, *_attempts = export(replace(record, account=f"per-user/key_01/{secret}"))
    assert (root.attributes or {})["lockgate.budget.account"] == "per-user/key_01/********"


def test_an_attempt_says_where_it_went_and_why_it_failed(export, record):
    _root, first, second = export(record)
    assert dict(first.attributes or {}) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "first", "gen_ai.request.model": "small-1",
        "http.response.status_code": 503, "error.type": "status:503", "lockgate.attempt.n": 1,
        "lockgate.attempt.end": "failed", "lockgate.attempt.waited_s": 0.0, "lockgate.cost_usd": "0", "lockgate.attempt.breaker": "closed",
    }
    assert {name: value for name, value in (second.attributes or {}).items() if name.startswith("lockgate.attempt.")} == {
        "lockgate.attempt.n": 2, "lockgate.attempt.end": "succeeded", "lockgate.attempt.waited_s": 0.01, "lockgate.attempt.why": "fallback",
        "lockgate.attempt.breaker": "half_open", "lockgate.attempt.retries_left": 2.5, "lockgate.attempt.largest_gap_s": 0.04}
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "no capacity")
    assert second.status.status_code is StatusCode.UNSET
    assert "lockgate.usage.estimated" not in (second.attributes or {})
    assert (second.attributes or {})["gen_ai.response.time_to_first_chunk"] == 0.05


def test_a_denied_call_is_no_error_and_says_no_more_than_it_knows(export, refused):
    [root] = export(replace(refused, operation="completions", route="made-up", cost_nusd=None, rule="", bundle=""), route="")
    assert root.name == "text_completion"
    assert root.status.status_code is StatusCode.UNSET
    unknown = {names.ROUTE, names.COST, names.RULE, names.BUNDLE, names.INPUT_TOKENS, names.FINISH_REASONS}
    assert not unknown & set(root.attributes or {})


def test_a_defect_of_the_gateway_is_an_error(export, refused):
    [root] = export(replace(refused, status=500, code="internal_error"))
    assert root.status.status_code is StatusCode.ERROR


def test_the_spans_hang_under_the_callers_span(export, record):
    root, *_rest = export(traced(record, f"00-{TRACE}-{PARENT}-01"))
    assert root.parent is not None
    assert f"{root.get_span_context().trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == PARENT


@pytest.mark.parametrize("traceparent", [
    "", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}-01-extra", f"00-{TRACE}x-{PARENT}-01", "00-" + "\x00" * 40, "x" * 100_000,
])
def test_an_invalid_traceparent_is_as_good_as_none(export, record, traceparent):
    root, *_rest = export(traced(record, traceparent))
    assert root.parent is None


def test_a_trace_that_the_caller_does_not_sample_gets_no_spans(export, record):
    assert export(traced(record, f"00-{TRACE}-{PARENT}-00")) == []
    assert export.dropped == []


def test_wall_time_that_steps_back_makes_no_negative_span(export, record, attempt):
    odd = replace(record, ended_ns=record.received_ns - 5, attempts=(replace(attempt, ended_ns=attempt.started_ns - 5),))
    for span in export(odd):
        assert span.start_time is not None
        assert span.end_time == span.start_time


def test_a_count_that_otlp_cannot_carry_does_not_cost_the_other_spans_their_batch(export, record):
    root, *_rest = export(replace(record, usage=Usage(input_tokens=2**64)))
    assert (root.attributes or {})[names.INPUT_TOKENS] == 2**63 - 1


def test_secrets_stay_out_of_every_span(export, record, attempt, secret):
    origin = replace(record.origin, session=secret, run=secret, step=secret)
    failed = replace(attempt, end=AttemptEnd.FAILED, message=f"bad key {secret}")
    spoken = replace(record, outcome=Outcome.FAILED, message=secret, origin=origin, attempts=(failed,),
                     finish_reasons=(secret,))
    for span in export(spoken):
        assert secret not in span.to_json()


def test_the_spans_name_the_gateway_and_nothing_global_is_touched(export, record):
    root, *_rest = export(record)
    assert root.resource.attributes["service.name"] == "edge"
    assert root.instrumentation_scope is not None
    assert root.instrumentation_scope.name == "lockgate"
    assert trace.get_tracer_provider() is not export.spans._provider


class Refusing(SpanExporter):
    """A collector that takes nothing, and may fail worse than that."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.batches: list[int] = []

    def export(self, spans):
        self.batches.append(len(spans))
        if self.error is not None:
            raise self.error
        return SpanExportResult.FAILURE


@pytest.mark.parametrize("error", [None, OSError("unreachable")])
def test_spans_that_the_collector_refuses_are_counted(record, scrub, error):
    dropped: list[int] = []
    exporter = Refusing(error)
    spans = Spans(exporter, {}, Cleaner(scrub), dropped.append)
    spans.add(record, "small")
    spans.close()
    assert dropped == exporter.batches == [3]


def test_a_collector_that_hangs_costs_spans_and_not_memory(record, scrub):
    """Its queue holds 2,048 spans; what is over is counted, and the SDK is not left to warn about every one of them."""
    dropped: list[int] = []
    exporter = Refusing()
    spans = Spans(exporter, {}, Cleaner(scrub), dropped.append)
    lock = spans._provider._active_span_processor._span_processors[0]._batch_processor._export_lock  # type: ignore[attr-defined] # holds exports back
    with lock:
        for _ in range(1_000):
            spans.add(record, "small")
        assert sum(dropped) == 3_000 - 2_046
        dropped.clear()
    spans.close()
    assert sum(exporter.batches) == 2_046


def test_the_names_are_those_of_the_conventions_installed():
    """The GenAI conventions are in development; the day one of our names is dropped from them, this fails."""
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    ours = {name for name in {*names.CALL_ATTRIBUTES, *names.ATTEMPT_ATTRIBUTES} if name.startswith("gen_ai.")}
    assert ours <= known
    operations = {member.value for member in gen_ai_attributes.GenAiOperationNameValues}
    assert {"chat", "embeddings", *names.OPERATIONS.values()} <= operations
