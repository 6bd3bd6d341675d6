"""When a fault happens: rules in order, what they match, how often; and what a wrong scenario file is told."""

import re
import tomllib
from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.errors import ConfigError
from gateway.simulator.faults import NO_FAULT, Fault
from gateway.simulator.match import Match
from gateway.simulator.scenario import Director, FaultRule, Scenario, bare_model, read_scenario, scenario_from
from gateway.simulator.timeline import Timeline, TimelineStep

FILE = """
models = ["alpha", "beta"]

[pacing]
delay_first_token = "200ms"

[[fault]]
match = { model = "alp*", path = "/v1/chat/*", api_key = "sk-?", nth = [1, 3] }
status = 503
retry_after = 1

[[fault]]
match = { nth = 2 }
cut_after_chunks = 4
times = 1
"""


def choose(director: Director, model: str = "alpha", path: str = "/v1/chat/completions", api_key: str = "sk-1",
           header: str | None = None) -> Fault:
    return director.choose(header=header, model=model, path=path, api_key=api_key)


def test_a_file_says_it_all(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(FILE)
    scenario = read_scenario(path)
    assert scenario == Scenario(
        rules=(FaultRule(Fault(status=503, retry_after_s=1.0),
                         Match("alp*", "/v1/chat/*", "sk-?", frozenset({1, 3}))),
               FaultRule(Fault(cut_after_chunks=4, times=1), Match(nth=frozenset({2})))),
        pacing=Fault(delay_first_token_s=0.2), models=("alpha", "beta"))


@pytest.mark.parametrize(("text", "words"), [
    ("fault = 1", "fault: expected a list"), ("[[fault]]\nstatis = 1", r"fault\[1\]: unknown key 'statis' .did you mean 'status'"),
    ("[[fault]]\nhang = true\n[[fault]]\nmatch = 3", r"fault\[2\]: expected a table"),
    ("[[fault]]\nmatch = {mode = 'x'}", "did you mean 'model'"), ("[[fault]]\nmatch = {model = 1}", "are strings"),
    ("[[fault]]\nmatch = {nth = 0}", "match.nth"), ("[[fault]]\nmatch = {nth = [1, true]}", "match.nth"),
    ("[pacing]\nstatus = 3", "pacing: unknown key"), ("[pacing]\ndelay_headers = 'soon'", "duration"),
    ("timeline = 1", r"timeline: expected a list of tables, \[\[timeline\]\]"), ("[[timeline]]\nfor = 'soon'", r"timeline\[1\]: for: expected a duration"),
    ("[[timeline]]\nfro = 1", "did you mean 'for'"), ("[[timeline]]\nfor = 0", "above 0"), ("[[timeline]]\nrefuse = 1", "refuse: expected true or false"),
    ("[[timeline]]\nrefuse = true\nstatus = 500", "stands alone"), ("[[timeline]]\n[[timeline]]\nfor = 1", "step 1 has no `for`"),
    ("[[timeline]]\nfor = 1\nmatch = {nth = 0}", r"timeline\[1\]: match.nth"), ("repeat = 1", "repeat: expected true or false"),
    ("repeat = true", "repeat needs steps"), ("[[fault]]\nrefuse = true", "unknown key 'refuse'"), ("[[fault]]\nfor = 1", "unknown key 'for'"),
    ("models = 'x'", "models: expected a list of names"), ("modles = []", "did you mean 'models'"),
    ("[[fault]]\nstatus = 500\nhang = true", "cannot be combined"), ("= 3", "not TOML"), ("\udcff", "not TOML"),
])
def test_a_wrong_file_is_told_where_and_what(tmp_path, text, words):
    path = tmp_path / "scenario.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=words) as caught:
        read_scenario(path)
    assert caught.value.problems[0].file == str(path)


def test_a_file_that_is_not_there_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_scenario(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="expected a table"):
        scenario_from([], "scenario")


TIMELINE = """
repeat = true

[[timeline]]
for = "20s"
match = { model = "alp*", nth = [2] }
status = 503
retry_after = 1

[[timeline]]
for = "500ms"
refuse = true

[[timeline]]
for = 1
"""


def test_a_file_says_what_is_wrong_when(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text(TIMELINE)
    assert read_scenario(path).timeline == Timeline((
        TimelineStep(Fault(status=503, retry_after_s=1.0), Match("alp*", nth=frozenset({2})), 20.0),
        TimelineStep(for_s=0.5, refuse=True), TimelineStep(for_s=1.0)), repeat=True)


def test_the_scenarios_of_the_documentation_can_be_played():
    guide = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text("utf-8")
    first, second = [scenario_from(tomllib.loads(text), "guide") for text in re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)]
    assert len(first.rules) == 2
    assert [step.refuse for step in second.timeline.steps] == [False, True, False, False]


def lined(*steps: TimelineStep, repeat: bool = False, rules: tuple[FaultRule, ...] = ()) -> Scenario:
    return Scenario(rules, timeline=Timeline(steps, repeat))


async def test_the_step_in_force_stands_before_the_rules_and_behind_what_a_request_says(moved_clock):
    broken = TimelineStep(Fault(status=503), Match(model="alp*"), 20.0)
    director = Director(lined(broken, TimelineStep(for_s=10.0), rules=(FaultRule(Fault(empty=True)),)), moved_clock)
    assert choose(director) == Fault(status=503)
    assert choose(director, "beta") == Fault(empty=True)
    assert choose(director, "alpha!hang") == choose(director, header="hang") == Fault(hang=True)
    await moved_clock.move(20)
    assert choose(director) == Fault(empty=True)
    await moved_clock.move(10)
    assert choose(director) == Fault(empty=True)


async def test_a_step_counts_anew_each_time_that_it_begins_and_a_rule_goes_on(moved_clock):
    steps = (TimelineStep(Fault(status=503, times=2), for_s=10.0), TimelineStep(Fault(status=500), Match(nth=frozenset({2})), 10.0))
    director = Director(lined(*steps, repeat=True, rules=(FaultRule(Fault(status=418, times=3)),)), moved_clock)
    seen = []
    for _ in range(3):
        for _ in range(2):
            seen.append([choose(director).status for _ in range(3)])
            await moved_clock.move(10)
    assert seen == [[503, 503, 418], [418, 500, 418], [503, 503, None], [None, 500, None], [503, 503, None], [None, 500, None]]
    assert len(director._matched) + len(director._applied) < 6, "what is counted does not grow with the rounds"


async def test_a_time_line_begins_when_its_scenario_does(moved_clock):
    director = Director(Scenario(), moved_clock)
    await moved_clock.move(100)
    director.play(lined(TimelineStep(for_s=5.0), TimelineStep(refuse=True, for_s=3.0), TimelineStep(Fault(hang=True))))
    assert (choose(director), director.refusal()) == (NO_FAULT, (False, 5.0))
    await moved_clock.move(6)
    assert (choose(director), director.refusal()) == (NO_FAULT, (True, 2.0))
    await moved_clock.move(2)
    assert (choose(director), director.refusal()) == (Fault(hang=True), (False, None))


async def test_nobody_waits_for_a_time_line_that_leaves_the_port_alone(moved_clock):
    assert Director(lined(TimelineStep(Fault(hang=True), for_s=5.0)), moved_clock).refusal() == (False, None)


def test_the_first_rule_that_applies_wins_and_every_match_counts():
    director = Director(Scenario((
        FaultRule(Fault(status=500), Match(model="alpha", nth=frozenset({1, 3}))),
        FaultRule(Fault(hang=True, times=1)),
        FaultRule(Fault(empty=True), Match(path="/v1/embeddings")),
    )), SystemClock())
    seen = [choose(director), choose(director), choose(director), choose(director)]
    assert seen == [Fault(status=500), Fault(hang=True, times=1), Fault(status=500), NO_FAULT]
    assert choose(director, path="/v1/embeddings") == Fault(empty=True)


def test_nth_counts_the_requests_of_its_own_match():
    director = Director(Scenario((FaultRule(Fault(status=500), Match(model="b", api_key="k*", nth=frozenset({2}))),)), SystemClock())
    assert [choose(director, model, api_key=key) for model, key in (("b", "k1"), ("a", "k1"), ("b", "x"), ("b", "k2"))] == [
        NO_FAULT, NO_FAULT, NO_FAULT, Fault(status=500)]


def test_a_header_beats_the_models_name_and_that_beats_the_scenario():
    director = Director(Scenario((FaultRule(Fault(empty=True)),)), SystemClock())
    assert choose(director) == Fault(empty=True)
    assert choose(director, "alpha!hang") == Fault(hang=True)
    assert choose(director, "alpha!hang", header="reset") == Fault(reset=True)
    assert bare_model("alpha!hang") == bare_model("alpha") == "alpha"


def test_times_is_counted_for_each_specification_and_starts_again_with_the_scenario():
    director = Director(Scenario(), SystemClock())
    spent = [choose(director, header="status=500;times=2").status for _ in range(3)]
    assert spent == [500, 500, None]
    assert choose(director, "m!status=500;times=2").status == 500
    director.play(Scenario())
    assert choose(director, header="status=500;times=2").status == 500


def test_the_counts_of_specifications_are_bounded(monkeypatch):
    monkeypatch.setattr("gateway.simulator.scenario._MAX_COUNTED", 2)
    director = Director(Scenario(), SystemClock())
    for number in range(5):
        assert choose(director, header=f"status={500 + number};times=1").status == 500 + number
    assert choose(director, header="status=504;times=1") is NO_FAULT
    assert choose(director, header="status=500;times=1").status == 500  # forgotten, so it starts again


def test_a_rule_without_a_fault_is_an_exception_to_those_behind_it():
    director = Director(Scenario((FaultRule(Fault(), Match(model="good")), FaultRule(Fault(hang=True)))), SystemClock())
    assert choose(director, "good") == NO_FAULT
    assert choose(director, "other") == Fault(hang=True)
