"""What `/metrics` shows, and what it must never be made to show."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.call import Attempt, AttemptEnd, CallRecord, Principal, Usage
from gateway.core.decision import BYPASS
from gateway.telemetry.metrics import METRICS, Metrics, cause_class


def samples(metrics: Metrics) -> Mapping[tuple[str, tuple[str, ...]], float]:
    """Every sample by its name and the values of its labels, in the order of the labels' names."""
    return {
        (sample.name, tuple(value for _name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode()) for sample in family.samples
    }


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics("0.1.0")
    metrics.serving("sha256:aa", {"small": "small", "little": "small"})
    return metrics


def test_a_call_is_counted_in_every_metric_that_concerns_it(metrics, record):
    metrics.count(record)
    seen = samples(metrics)
    assert {key: value for key, value in seen.items() if not key[0].endswith("_bucket") and value} == {
        ("lockgate_info", ("sha256:aa", "0.1.0")): 1,
        ("lockgate_calls_total", ("", "completed", "small", "search")): 1,
        ("lockgate_call_duration_seconds_sum", ("completed", "small")): 0.25,
        ("lockgate_call_duration_seconds_count", ("completed", "small")): 1,
        ("lockgate_call_first_byte_seconds_sum", ("small",)): 0.09,
        ("lockgate_call_first_byte_seconds_count", ("small",)): 1,
        ("lockgate_upstream_attempts_total", ("status:5xx", "failed", "small-1", "first")): 1,
        ("lockgate_upstream_attempts_total", ("", "succeeded", "small-1", "second")): 1,
        ("lockgate_further_attempts_total", ("small", "fallback")): 1,
        ("lockgate_tokens_total", ("small", "input")): 30,
        ("lockgate_tokens_total", ("small", "output")): 12,
        ("lockgate_tokens_total", ("small", "cache_read")): 10,
        ("lockgate_tokens_total", ("small", "cache_write")): 4,
        ("lockgate_tokens_total", ("small", "reasoning")): 5,
        ("lockgate_tokens_total", ("small", "input_audio")): 2,
        ("lockgate_tokens_total", ("small", "output_audio")): 1,
        ("lockgate_cost_usd_total", ("small", "search")): 0.001234567,
    }
    assert seen["lockgate_call_duration_seconds_bucket", ("0.25", "completed", "small")] == 1
    assert seen["lockgate_call_duration_seconds_bucket", ("0.1", "completed", "small")] == 0


def test_a_denied_call_counts_for_its_rule_and_costs_nothing(metrics, refused):
    metrics.count(refused)
    seen = samples(metrics)
    assert seen["lockgate_denied_total", ("night",)] == 1
    assert seen["lockgate_calls_total", ("forbidden", "refused", "small", "search")] == 1
    assert not [key for key in seen if "cost" in key[0]]


def guessed(attempt: Attempt) -> Attempt:
    """The attempt with a count of tokens that is ours."""
    return replace(attempt, usage=Usage(30, 12, estimated=True))


def test_what_was_estimated_is_counted_beside_what_it_is_a_part_of(metrics, record, attempt):
    first = replace(guessed(attempt), n=1, cost_nusd=1_000_000)
    metrics.count(replace(record, attempts=(first, attempt), cost_nusd=2_234_567))
    seen = samples(metrics)
    assert seen["lockgate_cost_usd_total", ("small", "search")] == 0.002234567
    assert seen["lockgate_estimated_cost_usd_total", ("small", "search")] == 0.001


def test_what_is_reserved_is_counted_with_what_of_it_was_used(metrics, record):
    metrics.count(replace(record, reserved_nusd=5_000_000))
    metrics.count(replace(record, reserved_nusd=1_000_000))  # it ran over: no more of a reservation is used than there is
    metrics.count(replace(record, reserved_nusd=None))
    seen = samples(metrics)
    assert seen["lockgate_reservations_usd_total", ("small", "reserved")] == 0.006
    assert seen["lockgate_reservations_usd_total", ("small", "used")] == 0.002234567


def test_refusals_of_budgets_are_counted_by_budget_and_never_by_subject(metrics, record, refused):
    """A caller chooses the subjects of users, sessions, runs and tags: each would be a series for ever."""
    for n in range(1_000):
        metrics.count(replace(refused, code="budget_exceeded", account=f"per-user/key_01/made-up-{n}\nlockgate_calls_total 1e9"))
    metrics.count(replace(refused, code="budget_busy", account="team-month/search"))
    metrics.count(replace(record, account="team-month/search"))  # the rest of its answer was refused
    seen = samples(metrics)
    assert {key[1]: value for key, value in seen.items() if key[0] == "lockgate_budget_refusals_total"} == {
        ("per-user", "budget_exceeded"): 1_000, ("team-month", "budget_busy"): 1, ("team-month", ""): 1}
    assert b"made-up" not in metrics.render()


def test_soft_limits_and_overruns_are_counted_by_budget(metrics):
    metrics.soft_limit("per-user/key_01/ann")
    metrics.soft_limit("per-user/key_01/bob")
    metrics.overrun(["per-user/key_01/ann", "all/all", "tags/a=b", "tags/c=d"], 2_500_000)
    seen = samples(metrics)
    assert seen["lockgate_budget_soft_limits_total", ("per-user",)] == 2
    assert {key[1]: value for key, value in seen.items() if key[0] == "lockgate_budget_overrun_usd_total"} == {
        ("per-user",): 0.0025, ("all",): 0.0025, ("tags",): 0.0025}


def test_an_unknown_cost_is_counted_as_unknown_and_not_as_nothing(metrics, record, refused):
    metrics.count(replace(record, cost_nusd=None))
    metrics.count(replace(refused, cost_nusd=None))  # it was never dispatched: there is nothing to know
    seen = samples(metrics)
    assert seen["lockgate_unknown_cost_calls_total", ("small", "search")] == 1
    assert not [key for key in seen if key[0] == "lockgate_cost_usd_total"]


def test_names_that_callers_make_up_do_not_become_labels(metrics, refused):
    """Each label value is a series for ever: a caller who can make them up can fill the gateway's memory."""
    for n in range(1_000):
        metrics.count(replace(refused, route=f"model-{n}\nlockgate_calls_total 1e9", code="unknown_route", decision=""))
    assert samples(metrics)["lockgate_calls_total", ("unknown_route", "refused", "", "search")] == 1_000
    assert b"model-" not in metrics.render()


@pytest.mark.parametrize(("cause", "counted"), [
    ("", ""), ("connect", "connect"), ("timeout:first_token", "timeout:first_token"), ("status:503", "status:5xx"),
    ("status:429", "status:4xx"), ("status:", "other"), ("status:999", "other"), ("timeout:lunch", "other"),
    ("x" * 99, "other"), ("check:answer-schema", "check:answer-schema"), ("not_accepted", "not_accepted"), ("hedged", "hedged"),
])
def test_causes_are_a_few_names(attempt, cause, counted):
    assert cause_class(replace(attempt, end=AttemptEnd.FAILED, cause=cause)) == counted


def test_a_route_is_counted_under_its_own_name_whatever_it_is_called_by(metrics, record):
    """Budgets count so too, and nobody adds up what he does not know to be the same."""
    metrics.count(record)
    metrics.count(replace(record, route="little"))
    assert samples(metrics)["lockgate_calls_total", ("", "completed", "small", "search")] == 2


def test_a_call_of_the_gateways_own_is_no_callers_call_and_costs_as_much(metrics, record):
    """A mirror that fails is no failure of the route, and what it costs is."""
    metrics.count(record)
    for kind in ("mirror", "classifier"):
        metrics.count(replace(record, part_of=record.id, labels=("seen", kind)))
    seen = samples(metrics)
    assert seen["lockgate_calls_total", ("", "completed", "small", "search")] == 1
    assert seen["lockgate_call_duration_seconds_count", ("completed", "small")] == 1
    assert {key[1]: value for key, value in seen.items() if key[0] == "lockgate_part_calls_total"} == {
        ("mirror", "completed", "small"): 1, ("classifier", "completed", "small"): 1}
    assert seen["lockgate_upstream_attempts_total", ("", "succeeded", "small-1", "second")] == 3
    assert seen["lockgate_cost_usd_total", ("small", "search")] == pytest.approx(3 * 0.001234567)


def test_attempts_after_the_first_are_counted_by_why_they_were_made(metrics, record, attempt):
    tries = tuple(replace(attempt, n=n, why=why) for n, why in enumerate(("", "retry", "retry", "hedge", "continuation"), 1))
    metrics.count(replace(record, attempts=tries))
    metrics.retries_spent("small")
    metrics.retries_spent("small")
    seen = samples(metrics)
    assert {key[1]: value for key, value in seen.items() if key[0] == "lockgate_further_attempts_total"} == {
        ("small", "retry"): 2, ("small", "hedge"): 1, ("small", "continuation"): 1}
    assert seen["lockgate_retry_budget_exhausted_total", ("small",)] == 2


@pytest.mark.parametrize(("state", "shown"), [("closed", 0), ("forced_closed", 0), ("half_open", 1), ("open", 2), ("forced_open", 2)])
def test_the_state_of_a_breaker_is_a_number_to_alert_on(metrics, state, shown):
    metrics.breaker("first/small-1", state)
    metrics.breaker_tripped("first/small-1")
    seen = samples(metrics)
    assert (seen["lockgate_breaker_state", ("first/small-1",)], seen["lockgate_breaker_trips_total", ("first/small-1",)]) == (shown, 1)


def test_label_values_with_quotes_and_newlines_do_not_break_the_format(metrics, record):
    metrics.count(replace(record, principal=Principal(id="k", team='a"b\\c\nd')))
    assert samples(metrics)["lockgate_calls_total", ("", "completed", "small", 'a"b\\c\nd')] == 1


def reason(rule: str, **changes: object) -> dict[str, object]:
    return {"rule": rule, "effect": "deny", "verdict": "matched", "source": "a.toml:1", "message": "", **changes}


def test_every_rule_that_contributed_is_counted_whatever_phase_it_was_asked_in(metrics, record):
    verdict = {"phase": "response", "subject": "", "decision": "allow", "rule": "", "message": "", "bundle": "sha256:aa",
               "reasons": [reason("pii", effect="redact"), reason("quiet", verdict="not_matched")]}
    asked = (reason("night"), reason("night"), reason("broken", verdict="error"), reason("soon", shadow=True), reason("idle", verdict="not_matched"))
    metrics.count(replace(record, reasons=asked, verdicts=(verdict,)))
    assert {key[1]: value for key, value in samples(metrics).items() if key[0] == "lockgate_rules_total"} == {
        ("deny", "enforce", "night", "matched"): 2, ("deny", "enforce", "broken", "error"): 1, ("deny", "shadow", "soon", "matched"): 1,
        ("redact", "enforce", "pii", "matched"): 1}


def test_a_tool_call_that_was_kept_back_counts_for_its_rule(metrics, record):
    kept = {"phase": "tool_call", "subject": "mail.send", "decision": "deny", "rule": "no-mail", "reasons": [reason("no-mail")]}
    others = ({**kept, "decision": "allow", "rule": ""}, {**kept, "phase": "response", "rule": "no-secrets"})
    metrics.count(replace(record, verdicts=(kept, {**kept, "decision": "held", "rule": "ask"}, kept, *others)))
    assert {key[1]: value for key, value in samples(metrics).items() if key[0] == "lockgate_withheld_tool_calls_total"} == {
        ("no-mail",): 2, ("ask",): 1}


def test_a_record_that_says_less_than_it_might_is_counted_all_the_same(metrics, record):
    metrics.count(replace(record, reasons=({},), verdicts=({},)))
    assert samples(metrics)["lockgate_calls_total", ("", "completed", "small", "search")] == 1


def test_a_call_that_went_round_the_rules_is_counted(metrics, record, refused):
    metrics.count(record)
    assert samples(metrics)["lockgate_bypasses_total", ()] == 0
    metrics.count(replace(record, labels=("seen", BYPASS)))
    metrics.count(replace(refused, labels=(BYPASS,)))
    assert samples(metrics)["lockgate_bypasses_total", ()] == 2


def test_files_that_could_not_be_loaded_show_until_they_can(metrics):
    def shown() -> list[float]:
        seen = samples(metrics)
        return [seen["lockgate_config_stale", ()], *(seen["lockgate_reloads_total", (result,)] for result in ("ok", "failed"))]

    assert shown() == [0, 0, 0]
    metrics.reloaded(ok=False)
    assert shown() == [1, 0, 1]
    metrics.reloaded(ok=False)
    metrics.reloaded(ok=True)
    assert shown() == [0, 1, 2]


def test_a_reload_shows_which_rules_are_in_force(metrics):
    metrics.serving("sha256:bb", {"small": "small", "little": "small"})
    seen = samples(metrics)
    assert seen["lockgate_info", ("sha256:bb", "0.1.0")] == 1
    assert seen["lockgate_info", ("sha256:aa", "0.1.0")] == 0


def test_losses_are_series_from_the_start(metrics):
    seen = samples(metrics)
    assert {key[1][0]: value for key, value in seen.items() if key[0] == "lockgate_telemetry_dropped_total"} == {
        "queue": 0, "log": 0, "metrics": 0, "spans": 0}


def test_calls_in_flight_are_a_gauge(metrics):
    metrics.in_flight(7)
    assert samples(metrics)["lockgate_in_flight_calls", ()] == 7


def test_calls_that_wait_and_calls_that_were_turned_away_are_shown_the_latter_from_the_start(metrics):
    metrics.waiting(4)
    metrics.shed("early")
    seen = samples(metrics)
    assert seen["lockgate_calls_waiting", ()] == 4
    assert {key[1][0]: value for key, value in seen.items() if key[0] == "lockgate_calls_shed_total"} == {
        "full": 0, "displaced": 0, "early": 1, "waited": 0, "stopping": 0}


def test_two_gateways_in_one_process_do_not_mix(metrics, record):
    other = Metrics("0.1.0")
    metrics.count(record)
    assert b"search" not in other.render()


def test_every_metric_is_as_documented(metrics, record, refused):
    metrics.count(record)
    metrics.count(refused)
    kept = {"phase": "tool_call", "decision": "deny", "rule": "no-mail", "reasons": [reason("no-mail")]}
    metrics.count(replace(record, cost_nusd=None, verdicts=(kept,)))
    metrics.count(replace(record, attempts=(guessed(record.attempts[1]),), account="b/blue", reserved_nusd=2_000_000))
    metrics.count(replace(record, part_of="call_00", labels=("mirror",)))
    metrics.retries_spent("small")
    metrics.part_not_made("mirror", "full")
    metrics.breaker("first/small-1", "open")
    metrics.breaker_tripped("first/small-1")
    metrics.soft_limit("b/blue")
    metrics.overrun(["b/blue"], 5)
    metrics.notice("ops", "delivered")
    metrics.pending(3)
    metrics.decided("pay", "approved", 12.5)
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    shown = {family.name + ("_total" if family.type == "counter" else ""): family for family in families.values()}
    assert set(shown) == {spec.name for spec in METRICS}
    for spec in METRICS:
        family = shown[spec.name]
        assert (family.type, family.documentation) == (spec.kind, spec.help)
        assert {name for sample in family.samples for name in sample.labels} - {"le"} == set(spec.labels)


def test_an_answer_without_usage_counts_no_tokens(metrics, record, attempt):
    metrics.count(replace(record, attempts=(replace(attempt, usage=None),), usage=None))
    assert b"lockgate_tokens_total{" not in metrics.render()


def test_a_provider_that_reports_negative_tokens_is_refused(metrics, record: CallRecord, attempt):
    with pytest.raises(ValueError, match="non-negative"):
        metrics.count(replace(record, attempts=(replace(attempt, usage=Usage(input_tokens=-5)),)))
