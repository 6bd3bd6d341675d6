"""OpenTelemetry spans, made from a call's record after its end: one for the call, one for each of its attempts.

Owns a `TracerProvider` of its own and sets nothing global. Imported only where an endpoint is configured.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Final, cast

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from gateway.call import Attempt, AttemptEnd, CallRecord, Outcome, Usage
from gateway.core.money import usd
from gateway.errors import SetupError
from gateway.telemetry import genai_attributes as names
from gateway.telemetry.clean import LONG, Cleaner
from gateway.telemetry.settings import OtlpSettings

_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_QUEUE: Final = 2_048  # spans
_BATCH: Final = 128  # spans a request: encoding them holds the interpreter, and no call may wait long for it
_MOST: Final = 2**63 - 1  # OTLP's integers have 64 bits, and one that does not fit costs the whole batch
_FAILED: Final = frozenset({Outcome.FAILED, Outcome.CUT, Outcome.INTERRUPTED})


def otlp_exporter(settings: OtlpSettings) -> SpanExporter:
    """The OTLP exporter. Raises `SetupError` where the extra that has it is not installed."""
    try:
        module = import_module(_EXPORTER)
    except ImportError as error:
        raise SetupError("`otlp.endpoint` is set, but no exporter is installed: pip install lockgate[otlp]") from error
    headers = {name: value.reveal() for name, value in settings.headers.items()}
    return cast("SpanExporter", module.OTLPSpanExporter(endpoint=settings.endpoint, headers=headers))


class Spans:
    """Turns records into spans and hands them to an exporter in batches. For one thread. `dropped` hears of losses."""

    def __init__(
        self, exporter: SpanExporter, resource: Mapping[str, str], clean: Cleaner, dropped: Callable[[int], None],
    ) -> None:
        self._clean = clean
        self._dropped = dropped
        self._counting = _CountingExporter(exporter, dropped)
        self._provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON),  # a caller that does not sample its trace gets no spans in it
            resource=Resource.create(resource), shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(self._counting, max_queue_size=_QUEUE, max_export_batch_size=_BATCH))
        self._tracer = self._provider.get_tracer("lockgate", resource.get("service.version"))
        self._parents = TraceContextTextMapPropagator()

    def add(self, record: CallRecord, route: str) -> None:
        """Make the spans of one call; `route` is its route where there is one of that name, for the span's name."""
        spans = 1 + len(record.attempts)
        if not self._counting.room(spans):  # else the processor drops the oldest, and warns in the host's log
            self._dropped(spans)
            return
        operation = names.OPERATIONS.get(record.operation, record.operation)
        root = self._tracer.start_span(
            f"{operation} {route}".rstrip(), context=self._parent(record.origin.traceparent), kind=SpanKind.SERVER,
            attributes=self._call_attributes(record, operation, route), start_time=record.received_ns,
        )
        if not root.is_recording():
            return
        context = set_span_in_context(root, Context())
        for attempt in record.attempts:
            self._add_attempt(attempt, operation, context)
        if record.outcome in _FAILED or record.status >= 500:
            root.set_status(Status(StatusCode.ERROR, self._clean(record.message, LONG)))
        self._end(root, record.received_ns, record.ended_ns)

    def close(self) -> None:
        """Send what waits, then stop. Takes as long as the collector does: the caller has the deadline."""
        self._provider.shutdown()

    def _add_attempt(self, attempt: Attempt, operation: str, context: Context) -> None:
        span: Span = self._tracer.start_span(
            f"{operation} {attempt.target.model}", context=context, kind=SpanKind.CLIENT,
            attributes=_attempt_attributes(attempt, operation), start_time=attempt.started_ns,
        )
        if attempt.end is not AttemptEnd.SUCCEEDED:
            span.set_status(Status(StatusCode.ERROR, self._clean(attempt.message, LONG)))
        self._end(span, attempt.started_ns, attempt.ended_ns)

    def _end(self, span: Span, started_ns: int, ended_ns: int) -> None:
        self._counting.add(1)
        span.end(max(started_ns, ended_ns))  # wall time may step backwards

    def _parent(self, traceparent: str | None) -> Context:
        """The caller's span, or nothing where the header is missing or not valid W3C Trace Context."""
        return self._parents.extract({"traceparent": traceparent} if traceparent else {}, context=Context())

    def _call_attributes(self, record: CallRecord, operation: str, route: str) -> dict[str, AttributeValue]:
        clean = self._clean
        attributes: dict[str, AttributeValue | None] = {
            names.OPERATION: operation, names.REQUEST_STREAM: record.stream,
            names.TOOL if record.operation == "tool" else names.REQUEST_MODEL: clean(record.route),
            names.FINISH_REASONS: [clean(reason) for reason in record.finish_reasons] or None,
            names.TIME_TO_FIRST_CHUNK: _seconds(record.received_ns, record.first_byte_ns),
            names.CONVERSATION: clean.optional(record.origin.session), names.RUN: clean.optional(record.origin.run),
            names.STEP: clean.optional(record.origin.step),
            names.HTTP_STATUS: record.status, names.ERROR_TYPE: record.code or None,
            names.CALL: record.id, names.KEY: clean(record.principal.id), names.TEAM: clean(record.principal.team),
            names.ROUTE: route or None, names.OUTCOME: record.outcome.value, names.DECISION: record.decision or None,
            names.RULE: record.rule or None, names.BUNDLE: record.bundle or None,
            names.COST: None if record.cost_nusd is None else usd(record.cost_nusd),
            names.ESTIMATED: any(attempt.usage is not None and attempt.usage.estimated for attempt in record.attempts) or None,
            names.RESERVED: None if record.reserved_nusd is None else usd(record.reserved_nusd),
            names.ACCOUNT: clean(record.account) or None, names.ATTEMPTS: len(record.attempts),
            names.TASK: clean((record.plan or {}).get("task", "")) or None, names.PART_OF: record.part_of or None,
            **_usage_attributes(record.usage),
        }
        return _present(attributes)


class _CountingExporter(SpanExporter):
    """Passes batches on; knows how many spans wait, and counts those that the collector did not take."""

    def __init__(self, exporter: SpanExporter, dropped: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._dropped = dropped
        self._waiting = 0
        self._lock = threading.Lock()

    def room(self, spans: int) -> bool:
        """Whether so many more may wait."""
        return self._waiting + spans <= _QUEUE

    def add(self, spans: int) -> None:
        """So many more wait, or fewer if it is negative."""
        with self._lock:
            self._waiting += spans

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.add(-len(spans))
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is not SpanExportResult.SUCCESS:
                self._dropped(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _attempt_attributes(attempt: Attempt, operation: str) -> dict[str, AttributeValue]:
    return _present({
        names.OPERATION: operation, names.PROVIDER: attempt.target.provider, names.REQUEST_MODEL: attempt.target.model,
        names.TIME_TO_FIRST_CHUNK: _seconds(attempt.started_ns, attempt.first_byte_ns),
        names.HTTP_STATUS: attempt.status, names.ERROR_TYPE: attempt.cause or None,
        names.ATTEMPT: attempt.n, names.ATTEMPT_END: attempt.end.value, names.WAITED: attempt.waited_s,
        names.WHY: attempt.why or None, names.BREAKER: attempt.breaker, names.RETRIES_LEFT: attempt.retries_left,
        names.LARGEST_GAP: attempt.largest_gap_s,
        names.COST: None if attempt.cost_nusd is None else usd(attempt.cost_nusd),
        names.ESTIMATED: (attempt.usage is not None and attempt.usage.estimated) or None,
        **_usage_attributes(attempt.usage),
    })


def _usage_attributes(usage: Usage | None) -> dict[str, AttributeValue | None]:
    if usage is None:
        return {}
    return {
        names.INPUT_TOKENS: min(usage.input_tokens, _MOST), names.OUTPUT_TOKENS: min(usage.output_tokens, _MOST),
        names.CACHE_READ_TOKENS: min(usage.cache_read_tokens, _MOST) or None,
        names.CACHE_WRITE_TOKENS: min(usage.cache_write_tokens, _MOST) or None,
        names.REASONING_TOKENS: min(usage.reasoning_tokens, _MOST) or None,
    }


def _present(attributes: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    return {name: value for name, value in attributes.items() if value is not None}


def _seconds(begin_ns: int, end_ns: int | None) -> float | None:
    return None if end_ns is None else (end_ns - begin_ns) / 1e9
