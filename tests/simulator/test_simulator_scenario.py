"""When a fault happens: rules in order, what they match, how often; and what a wrong scenario file is told."""

import pytest

from gateway.clock import SystemClock
from gateway.errors import ConfigError
from gateway.simulator.faults import NO_FAULT, Fault
from gateway.simulator.match import Match
from gateway.simulator.scenario import Director, FaultRule, Scenario, bare_model, read_scenario, scenario_from

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
