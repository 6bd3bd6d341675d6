"""Prometheus metrics of one gateway, in a registry of its own.

Labels are bounded by the configuration: routes that do not exist, and causes nobody knows, are counted under one name.

Several worker processes: with `PROMETHEUS_MULTIPROC_DIR` set before `prometheus_client` is imported, every process
writes its values to files in that folder and `render` adds them up. The process that starts the workers sets it to an
empty folder and calls `forget_worker` when one has ended (https://prometheus.github.io/client_python/multiprocess/).
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from gateway.call import Attempt, CallRecord, JsonObject, Usage
from gateway.core.decision import BYPASS
from gateway.core.explain_path import kind_of

METRICS_CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
Labelled = TypeVar("Labelled", bound=MetricWrapperBase)
RuleCounts: TypeAlias = Mapping[tuple[str, str], Mapping[str, int]]  # by rule and mode: how often each verdict
PREFIX: Final = "lockgate_"
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_UP_TO_DAYS: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1_800.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0)
_STATUS: Final = re.compile(r"status:([1-5])\d\d", re.ASCII)
_CHECK: Final = "check:"  # what follows is a validator's name, of a few
_CAUSES: Final = frozenset({
    "", "connect", "tls", "reset", "malformed", "cut", "stream_error", "too_large", "too_long", "not_accepted", "hedged",
    "timeout:connect", "timeout:headers", "timeout:first_token", "timeout:idle", "timeout:total",
})


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """A metric as it is documented."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


CALLS: Final = MetricSpec("lockgate_calls_total", "counter", ("route", "team", "outcome", "code"),
    "Calls that ended. `code` is the error code given to the caller, empty on success.")
DURATION: Final = MetricSpec("lockgate_call_duration_seconds", "histogram", ("route", "outcome"),
    "Seconds from a call's arrival to its end.")
FIRST_BYTE: Final = MetricSpec("lockgate_call_first_byte_seconds", "histogram", ("route",),
    "Seconds from a call's arrival to the provider's first byte.")
ATTEMPTS: Final = MetricSpec("lockgate_upstream_attempts_total", "counter", ("provider", "model", "end", "cause"),
    "Attempts that ended. `cause` is empty on success; a status is counted by its class, as `status:5xx`.")
FURTHER: Final = MetricSpec("lockgate_further_attempts_total", "counter", ("route", "why"),
    "Attempts after a call's first. `why` is `retry`, `fallback`, `hedge`, `cascade` or `continuation`.")
RETRIES_SPENT: Final = MetricSpec("lockgate_retry_budget_exhausted_total", "counter", ("route",),
    "Further attempts that were not made because the route's retry budget was used up.")
PARTS: Final = MetricSpec("lockgate_part_calls_total", "counter", ("route", "kind", "outcome"),
    "Calls that the gateway made itself for callers' calls, which `lockgate_calls_total` does not count: `kind` is `mirror`, "
    "`classifier` or `verify`. Their attempts, tokens and cost are counted with all others.")
PARTS_NOT_MADE: Final = MetricSpec("lockgate_part_calls_not_made_total", "counter", ("kind", "reason"),
    "Such calls that were not made. `rules`: a rule keeps the call from that target; `breaker`: the target is not well; `budget` and "
    "`price`: there is too little money for it, or nobody knows how much it needs; `full`: as many as may be are under way.")
TOKENS: Final = MetricSpec("lockgate_tokens_total", "counter", ("route", "type"),
    "Tokens used. `input` and `output` count cached, reasoning and audio tokens too, which also have their own `type`.")
COST: Final = MetricSpec("lockgate_cost_usd_total", "counter", ("route", "team"),
    "Known cost in USD. A float for dashboards; the journal has the exact amounts.")
UNKNOWN_COST: Final = MetricSpec("lockgate_unknown_cost_calls_total", "counter", ("route", "team"),
    "Dispatched calls whose cost is unknown: the price or the usage is missing.")
ESTIMATED_COST: Final = MetricSpec("lockgate_estimated_cost_usd_total", "counter", ("route", "team"),
    "Of `lockgate_cost_usd_total` what is an upper bound of ours, because a provider did not say what it used.")
RESERVATIONS: Final = MetricSpec("lockgate_reservations_usd_total", "counter", ("route", "state"),
    "Of ended calls that budgets bound: USD that were `reserved` for them, and USD of it that they `used`. What stands in between was "
    "held for nothing.")
SHORT: Final = MetricSpec("lockgate_budget_refusals_total", "counter", ("budget", "code"),
    "Calls that a budget refused. `code` is the error code given to the caller, empty where only the rest of a streamed "
    "answer was refused.")
SOFT: Final = MetricSpec("lockgate_budget_soft_limits_total", "counter", ("budget",),
    "Times that an account of a budget reached its soft limit.")
OVERRUN: Final = MetricSpec("lockgate_budget_overrun_usd_total", "counter", ("budget",),
    "USD that calls cost beyond what was reserved for them: their provider did more than it was asked for.")
DENIED: Final = MetricSpec("lockgate_denied_total", "counter", ("rule",), "Calls that a rule denied.")
RULES: Final = MetricSpec("lockgate_rules_total", "counter", ("rule", "effect", "verdict", "mode"),
    "Rules that contributed to a decision. `verdict` is `matched`, or `error` where the rule could not be evaluated; `mode` is "
    "`enforce` or `shadow`.")
WITHHELD: Final = MetricSpec("lockgate_withheld_tool_calls_total", "counter", ("rule",),
    "Tool calls that a model proposed and a rule kept from the application.")
BYPASSES: Final = MetricSpec("lockgate_bypasses_total", "counter", (),
    "Calls that brought the result of a tool call which was never let through.")
RELOADS: Final = MetricSpec("lockgate_reloads_total", "counter", ("result",),
    "Times the deployment's files were loaded again: `ok` or `failed`, each in every worker.")
STALE: Final = MetricSpec("lockgate_config_stale", "gauge", (),
    "1 while the files on disk could not be loaded, so that the last good ones are in force.")
IN_FLIGHT: Final = MetricSpec("lockgate_in_flight_calls", "gauge", (), "Calls being handled now.")
WAITING: Final = MetricSpec("lockgate_calls_waiting", "gauge", (), "Calls that wait for a place because the house is full.")
SHED: Final = MetricSpec("lockgate_calls_shed_total", "counter", ("reason",),
    "Calls turned away because the house was full. `full`: the queue was, too; `displaced`: from a full queue, for a caller with fewer "
    "waiting; `early`: its turn would not have come in time; `waited`: it did not come in time; `stopping`: the gateway stops.")
BREAKER: Final = MetricSpec("lockgate_breaker_state", "gauge", ("target",),
    "The breaker of a target: 0 closed, 1 half open, 2 open; by itself or by hand.")
TRIPS: Final = MetricSpec("lockgate_breaker_trips_total", "counter", ("target",), "Times that a target's breaker has opened by itself.")
NOTICES: Final = MetricSpec("lockgate_notices_total", "counter", ("channel", "outcome"),
    "Notices to people, by `[notify.NAME]`. `delivered`; `failed`: one try, which is made again; `dead`: given up a day after it was due; "
    "`dropped`: nobody had to be told any more.")
DECIDED: Final = MetricSpec("lockgate_approvals_decided_total", "counter", ("rule", "outcome"),
    "Approvals by what became of the question. `approved`, `denied`, `withdrawn`; `edited`: another stands in its place; `expired`: nobody "
    "decided in time; `unused`: it was approved, and nobody came for it in time, so that it is counted as both.")
DECISION: Final = MetricSpec("lockgate_approval_decision_seconds", "histogram", ("rule",),
    "Seconds from an approval's opening to the vote that approved or denied it.")
PENDING: Final = MetricSpec("lockgate_approvals_pending", "gauge", (), "Approvals that wait for people.")
DROPPED: Final = MetricSpec("lockgate_telemetry_dropped_total", "counter", ("view",),
    "Views of a call that were not made; its journal row is not concerned. `queue`: too many calls waited, so this one "
    "has no view at all; `log`: the line could not be written; `metrics`: a value could not be counted; `spans`: too "
    "many waited, or the collector did not take them.")
INFO: Final = MetricSpec("lockgate_info", "gauge", ("version", "bundle"),
    "1 for the version that runs and the digest of the rules in force, 0 for rules in force before.")

SHED_REASONS: Final = ("full", "displaced", "early", "waited", "stopping")
_BREAKER_STATES: Final = {"closed": 0, "forced_closed": 0, "half_open": 1, "open": 2, "forced_open": 2}
VIEWS: Final = ("queue", "log", "metrics", "spans")
METRICS: Final = (
    CALLS, DURATION, FIRST_BYTE, ATTEMPTS, FURTHER, RETRIES_SPENT, PARTS, PARTS_NOT_MADE, TOKENS, COST, UNKNOWN_COST, ESTIMATED_COST,
    RESERVATIONS, SHORT, SOFT, OVERRUN, DENIED, RULES, WITHHELD, BYPASSES, RELOADS, STALE, IN_FLIGHT, WAITING, SHED, BREAKER, TRIPS,
    NOTICES, DECIDED, DECISION, PENDING, DROPPED, INFO,
)


class _Series(dict[tuple[str, ...], Labelled]):
    """The series of a metric by the values of their labels. `labels()` costs a microsecond, this a tenth, ten times a call."""

    def __init__(self, metric: Labelled) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, values: tuple[str, ...]) -> Labelled:
        self[values] = series = self._metric.labels(*values)
        return series


class Metrics:
    """What `/metrics` shows. Every method may be called from any thread."""

    def __init__(self, version: str) -> None:
        registry = CollectorRegistry(auto_describe=False)
        self._version = version
        self._bundle = ""
        self._routes: Mapping[str, str] = {}
        self._calls = _counter(CALLS, registry)
        self._duration = _histogram(DURATION, registry)
        self._first_byte = _histogram(FIRST_BYTE, registry)
        self._attempts = _counter(ATTEMPTS, registry)
        self._further = _counter(FURTHER, registry)
        self._retries_spent = _counter(RETRIES_SPENT, registry)
        self._parts = _counter(PARTS, registry)
        self._parts_not_made = _counter(PARTS_NOT_MADE, registry)
        self._tokens = _counter(TOKENS, registry)
        self._cost = _counter(COST, registry)
        self._unknown_cost = _counter(UNKNOWN_COST, registry)
        self._estimated_cost = _counter(ESTIMATED_COST, registry)
        self._reservations = _counter(RESERVATIONS, registry)
        self._short = _counter(SHORT, registry)
        self._soft = _counter(SOFT, registry)
        self._overrun = _counter(OVERRUN, registry)
        self._denied = _counter(DENIED, registry)
        self._rules = _counter(RULES, registry)
        self._withheld = _counter(WITHHELD, registry)
        self._bypasses = Counter(BYPASSES.name, BYPASSES.help, registry=registry)
        self._reloads = _counter(RELOADS, registry)
        self._breaker = _Series(Gauge(BREAKER.name, BREAKER.help, BREAKER.labels, registry=registry, multiprocess_mode="livemax"))
        self._trips = _counter(TRIPS, registry)
        self._stale = Gauge(STALE.name, STALE.help, registry=registry, multiprocess_mode="livemax")
        self._notices = _counter(NOTICES, registry)
        self._decided = _counter(DECIDED, registry)
        self._decision = _histogram(DECISION, registry, _UP_TO_DAYS)
        self._pending = Gauge(PENDING.name, PENDING.help, registry=registry, multiprocess_mode="livemostrecent")
        self._dropped = _counter(DROPPED, registry)
        self._in_flight = Gauge(IN_FLIGHT.name, IN_FLIGHT.help, registry=registry, multiprocess_mode="livesum")
        self._waiting = Gauge(WAITING.name, WAITING.help, registry=registry, multiprocess_mode="livesum")
        self._shed = _counter(SHED, registry)
        self._info = Gauge(INFO.name, INFO.help, INFO.labels, registry=registry, multiprocess_mode="livemax")
        self._visible = _Visible(_source(registry))
        for view in VIEWS:
            self._dropped[view,]  # a series that is there from the start, at 0, can be alerted on
        for reason in SHED_REASONS:
            self._shed[reason,]
        for result in ("ok", "failed"):
            self._reloads[result,]

    def serving(self, bundle: str, routes: Mapping[str, str]) -> None:
        """These rules and routes are in force from now on: what a route is called, and the name that it is counted under."""
        if self._bundle:
            self._info.labels(self._version, self._bundle).set(0)
        self._bundle = bundle
        self._info.labels(self._version, bundle).set(1)
        self._routes = dict(routes)

    def reloaded(self, *, ok: bool) -> None:
        """The files on disk were loaded again, or could not be."""
        self._reloads["ok" if ok else "failed",].inc()
        self._stale.set(0 if ok else 1)

    def in_flight(self, calls: int) -> None:
        """So many calls are being handled."""
        self._in_flight.set(calls)

    def waiting(self, calls: int) -> None:
        """So many calls wait for a place."""
        self._waiting.set(calls)

    def shed(self, reason: str) -> None:
        """A call was turned away, for one of `SHED_REASONS`."""
        self._shed[reason,].inc()

    def notice(self, channel: str, outcome: str) -> None:
        """A notice to people has had one of the outcomes of `NOTICES`."""
        self._notices[channel, outcome].inc()

    def decided(self, rule: str, outcome: str, seconds: float | None) -> None:
        """An approval that this rule asked for has had one of the outcomes of `DECIDED`; after so many seconds, where people voted."""
        self._decided[rule, outcome].inc()
        if seconds is not None:
            self._decision[rule,].observe(seconds)

    def pending(self, approvals: int) -> None:
        """So many approvals wait for people."""
        self._pending.set(approvals)

    def retries_spent(self, route: str) -> None:
        """A further attempt of this route was not made: its retry budget is used up."""
        self._retries_spent[route,].inc()

    def part_not_made(self, kind: str, reason: str) -> None:
        """A call of the gateway's own was not made."""
        self._parts_not_made[kind, reason].inc()

    def breaker(self, target: str, state: str) -> None:
        """The breaker of a target is in this state now."""
        self._breaker[target,].set(_BREAKER_STATES[state])

    def breaker_tripped(self, target: str) -> None:
        """The breaker of a target has opened by itself."""
        self._trips[target,].inc()

    def soft_limit(self, account: str) -> None:
        """An account has reached its soft limit."""
        self._soft[_budget(account),].inc()

    def overrun(self, accounts: Iterable[str], nusd: int) -> None:
        """A call on these accounts cost so much more than was set aside for it."""
        for budget in {_budget(account) for account in accounts}:
            self._overrun[budget,].inc(nusd / 1e9)

    def dropped(self, view: str, count: int = 1) -> None:
        """A view of a record was not made."""
        self._dropped[view,].inc(count)

    def count(self, record: CallRecord) -> None:
        """Count one call. Raises `ValueError` on a negative and `OverflowError` on an absurd number of tokens."""
        route = self.route(record)
        team, outcome = record.principal.team, record.outcome.value
        if record.part_of:
            self._parts[route, kind_of(record.labels), outcome].inc()
        else:
            self._calls[route, team, outcome, record.code].inc()
            self._duration[route, outcome].observe((record.ended_ns - record.received_ns) / 1e9)
            if record.first_byte_ns is not None:
                self._first_byte[route,].observe((record.first_byte_ns - record.received_ns) / 1e9)
        for attempt in record.attempts:
            target = attempt.target
            self._attempts[target.provider, target.model, attempt.end.value, cause_class(attempt)].inc()
            if attempt.why:
                self._further[route, attempt.why].inc()
            if attempt.usage is not None:
                self._count_tokens(route, attempt.usage)
        self._count_money(record, route)
        if record.decision == "deny":
            self._denied[record.rule,].inc()
        if BYPASS in record.labels:
            self._bypasses.inc()
        self._count_rules(record.reasons)
        for verdict in record.verdicts:
            self._count_rules(verdict.get("reasons", ()))
            if verdict.get("phase") == "tool_call" and verdict.get("decision") != "allow":
                self._withheld[verdict.get("rule", ""),].inc()

    def route(self, record: CallRecord) -> str:
        """The route's own name, whatever alias it was called by; nothing where the caller made it up."""
        return self._routes.get(record.route, "")

    def render(self) -> bytes:
        """Everything in Prometheus' text format, of `METRICS_CONTENT_TYPE`."""
        return generate_latest(self._visible)

    def rule_counts(self) -> RuleCounts:
        """How often each rule has contributed, as counted so far, over all workers."""
        counts: dict[tuple[str, str], dict[str, int]] = {}
        for sample in (sample for metric in self._visible.collect() for sample in metric.samples if sample.name == RULES.name):
            verdicts = counts.setdefault((sample.labels["rule"], sample.labels["mode"]), {})
            verdict = sample.labels["verdict"]
            verdicts[verdict] = verdicts.get(verdict, 0) + int(sample.value)  # a rule's effect may have been another before a reload
        return counts

    def _count_money(self, record: CallRecord, route: str) -> None:
        team, cost_nusd = record.principal.team, record.cost_nusd
        if cost_nusd:
            self._cost[route, team].inc(cost_nusd / 1e9)
            if record.estimated_nusd:
                self._estimated_cost[route, team].inc(record.estimated_nusd / 1e9)
        elif cost_nusd is None and record.attempts:
            self._unknown_cost[route, team].inc()
        if record.reserved_nusd:
            self._reservations[route, "reserved"].inc(record.reserved_nusd / 1e9)
            used_nusd = sum(attempt.cost_nusd or 0 for attempt in record.attempts)
            self._reservations[route, "used"].inc(min(used_nusd, record.reserved_nusd) / 1e9)
        if record.account:
            self._short[_budget(record.account), record.code].inc()

    def _count_rules(self, reasons: Iterable[JsonObject]) -> None:
        for reason in reasons:
            verdict = reason.get("verdict", "")
            if verdict in ("matched", "error"):
                mode = "shadow" if reason.get("shadow") else "enforce"
                self._rules[reason.get("rule", ""), reason.get("effect", ""), verdict, mode].inc()

    def _count_tokens(self, route: str, usage: Usage) -> None:
        for kind, count in (
            ("input", usage.input_tokens), ("output", usage.output_tokens), ("cache_read", usage.cache_read_tokens),
            ("cache_write", usage.cache_write_tokens), ("reasoning", usage.reasoning_tokens),
            ("input_audio", usage.input_audio_tokens), ("output_audio", usage.output_audio_tokens),
        ):
            if count:
                self._tokens[route, kind].inc(count)


def cause_class(attempt: Attempt) -> str:
    """Why an attempt failed, as one of a few names."""
    cause = attempt.cause
    if cause in _CAUSES or cause.startswith(_CHECK):
        return cause
    status = _STATUS.fullmatch(cause)
    return f"status:{status[1]}xx" if status else "other"


def _budget(account: str) -> str:
    """The budget of an account. Its subject is no label: callers choose some of them."""
    return account.partition("/")[0]


def forget_worker(pid: int) -> None:
    """A worker process ended: its gauges no longer count. For the process that started it; its counters stay."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call] # prometheus_client leaves it untyped


class _Visible(Collector):
    """Our metrics without the `_created` series: they double every counter, and with several workers there are none."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        for metric in self._source.collect():
            if metric.name.startswith(PREFIX):  # a host process may keep its own metrics in the same folder
                metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
                yield metric


def _source(registry: CollectorRegistry) -> Collector:
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return registry
    return MultiProcessCollector(None, folder)  # type: ignore[no-untyped-call] # prometheus_client leaves it untyped


def _counter(spec: MetricSpec, registry: CollectorRegistry) -> _Series[Counter]:
    return _Series(Counter(spec.name, spec.help, spec.labels, registry=registry))


def _histogram(spec: MetricSpec, registry: CollectorRegistry, buckets: Sequence[float] = _SECONDS) -> _Series[Histogram]:
    return _Series(Histogram(spec.name, spec.help, spec.labels, registry=registry, buckets=buckets))
