"""What routes and tools say is compiled before the first call; what contradicts itself is named with file, line, key and a way out."""

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.call import Call, Principal, Reply, Target
from gateway.core.breaker import BreakerRules
from gateway.core.plan import Classifier, Hedge, Retry, Route
from gateway.core.question import BudgetFacts, Question
from gateway.deployment import read_deployment
from gateway.errors import ConfigError
from gateway.snapshot import Snapshot, compile_snapshot

SHIPPED = Path(__file__).parents[1] / "routes/simulator.toml"
CONFIG = """[auth]
pepper = "env:PEPPER"
[providers.one]
adapter = "openai"
base_url = "http://127.0.0.1:9090/v1"
[providers.two]
adapter = "openai"
base_url = "http://127.0.0.1:9091/v1"
[providers.small]
adapter = "small"
base_url = "http://127.0.0.1:9092/v1"
[providers.simulator]
adapter = "openai"
base_url = "http://127.0.0.1:9093/v1"
"""
CHATS_ONLY = """
class A:
    name = "small"
    operations = frozenset({"completions"})
    def encode(self, call, target, api_key): ...
    def decode(self, call, body): ...
    def decode_error(self, status, headers, body): ...
    def decoder(self, call): ...
    def health(self, path, api_key): ...
ADAPTER = A()
"""
ROUTE = '[[route]]\nname = "r"\n'  # lines 1 and 2 of the file
TWO = 'targets = [{ provider = "one", model = "m" }, { provider = "two", model = "m" }]\n'  # line 3
TOOL = '[[tool]]\nname = "t"\nmethod = "GET"\nurl = "https://tools.example/t"\n'


class Folder:
    """A deployment folder that is written and read by a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("routes", "policies", "adapters"):
            (path / name).mkdir()
        (path / "adapters/small.py").write_text(CHATS_ONLY)

    def compile(self, routes: str, config: str = "") -> Snapshot:
        (self.path / "config.toml").write_text(CONFIG + config)
        (self.path / "routes/r.toml").write_text(routes)
        return compile_snapshot(read_deployment(self.path / "config.toml"), {"PEPPER": "p" * 32})

    def route(self, said: str, targets: str = TWO, config: str = "") -> Route:
        return self.compile(ROUTE + targets + said, config).routes["r"]

    def problems(self, routes: str, config: str = "") -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.compile(routes, config)
        return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


# What is compiled.


def test_a_route_that_says_nothing_more_is_what_it_always_was(folder):
    made = folder.route("")
    assert (made.strategy, made.aliases, made.rules, made.classifier, made.mirrors, made.checks, made.approve) == (
        "priority", (), None, None, (), None, False)
    assert (made.hedge, made.continues, made.early_s, made.retry) == (Hedge(), False, 0.0, Retry(2, 0.25, 5.0, 0.2, 3.0))
    assert [(to.weight, to.canary, to.continues, to.breaker) for to in made.targets] == [(1, None, None, BreakerRules())] * 2


def test_everything_that_a_route_says_is_in_it(folder):
    targets = """
[[route.targets]]
provider = "one"
model = "m"
weight = 3
continues = true
continue_with = { continue_final_message = true }
[[route.targets]]
provider = "two"
model = "n"
canary = 5
[[route.targets]]
provider = "two"
model = "o"
canary = 2.5
"""
    said = """
[[route.mirrors]]
provider = "two"
model = "copy"
percent = 10
[route.hedge]
after = "2s"
share = 0.1
[route.stream]
on_failure = "continue"
early = "15s"
[route.retry]
attempts = 3
budget = { share = 0.5, per_second = 1.0 }
"""
    made = folder.route(said, 'strategy = "sticky"\naliases = ["a", "b"]\n' + targets)
    first, second, third = made.targets
    assert (first.weight, dict(first.continues or {}), first.canary) == (3, {"continue_final_message": True}, None)
    assert (second.canary, second.canary_from, third.canary, third.canary_from) == (5.0, 0.0, 2.5, 5.0)
    assert [(str(mirror.to.target), mirror.percent) for mirror in made.mirrors] == [("two/copy", 10.0)]
    assert (made.strategy, made.aliases, made.continues, made.early_s) == ("sticky", ("a", "b"), True, 15.0)
    assert (made.hedge, made.retry) == (Hedge(2.0, 0.1), Retry(3, 0.25, 5.0, 0.5, 1.0))


def test_an_alias_is_the_same_route_under_another_name(folder):
    routes = folder.compile(ROUTE + TWO + 'aliases = ["other", "third"]\n').routes
    assert routes["other"] is routes["r"] is routes["third"]
    assert routes["other"].name == "r"


def test_a_target_that_can_go_on_without_any_field_is_one_that_can(folder):
    made = folder.route("", '[[route.targets]]\nprovider = "one"\nmodel = "m"\ncontinues = true\n')
    assert made.targets[0].continues == {}
    with pytest.raises(TypeError):
        made.targets[0].continues["x"] = 1


def test_rules_and_a_classifier_are_compiled(folder):
    made = folder.route("""
[[route.rules]]
when = 'task == "code" && request.size > 10'
targets = ["two/*", "*"]
[route.classifier]
provider = "one"
model = "judge"
tasks = ["code", "talk"]
default = "talk"
instructions = "be quick"
""")
    assert made.rules is not None
    assert made.rules.rules[0].targets == ("two/*", "*")
    assert made.classifier is not None
    assert made.classifier == Classifier(made.classifier.to, ("code", "talk"), "talk", "be quick", 2.0, 600.0)
    assert made.classifier.to.target == Target("one", "judge")


def test_validators_are_compiled_in_their_order(folder):
    made = folder.route("""
[[route.validators]]
non_empty = true
[[route.validators]]
json_schema = { type = "object", required = ["a"] }
[[route.validators]]
matches = "a|b"
[[route.validators]]
expression = "answer.length < 1000"
[[route.validators]]
finish_reasons = ["stop"]
""", TWO + 'on_exhausted = "approve"\n')
    assert made.checks is not None
    assert [check.name for check in made.checks.validators] == [
        "check:non_empty", "check:json_schema", "check:matches", "check:expression", "check:finish_reasons"]
    assert made.approve

    def fault(text: str, reason: str = "stop") -> str | None:
        assert made.checks is not None
        answer = Reply({"choices": [{"message": {"content": text}, "finish_reason": reason}]}, None)
        found: str | None = made.checks.fault(answer, "one/m", accepting=False)
        return found

    assert fault('{"a": 1}') is None
    assert fault('{"b": 1}') == "check:json_schema"
    assert fault(f'{{"a": "{"x" * 1000}"}}') == "check:expression"
    assert fault('{"a": 1}', "length") == "check:finish_reasons"


def test_a_cascade_has_what_it_accepts(folder):
    made = folder.route("", TWO + "strategy = \"cascade\"\naccept = 'answer.length > 3'\n")
    assert made.checks is not None
    assert made.checks.fault(Reply({"choices": [{"message": {"content": "a"}}]}, None), "one/m", accepting=True) == "not_accepted"


def test_a_route_that_checks_texts_does_no_embeddings(folder):
    assert folder.route("[[route.validators]]\nnon_empty = true\n").operations == {"chat", "completions"}
    assert folder.route("").operations == {"chat", "completions", "embeddings"}


def test_a_mirror_has_to_do_what_the_route_does(folder):
    assert folder.route('[[route.mirrors]]\nprovider = "small"\nmodel = "m"\n').operations == {"completions"}


def test_expressions_look_into_the_deployments_lists(folder):
    (folder.path / "policies/lists").mkdir()
    (folder.path / "policies/lists/big.txt").write_text("ada\n")
    made = folder.route("""[[route.rules]]\nwhen = 'user.in_list("big")'\ntargets = ["two/*"]\n""")
    assert made.rules is not None
    assert made.rules.rules[0].program.names == {"user"}


@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
def test_expressions_run_on_the_engine_that_is_set(folder, engine):
    made = folder.route('[[route.rules]]\nwhen = "true"\ntargets = ["two/*"]\n', config=f'[policy]\nengine = "{engine}"\n')
    assert made.rules is not None
    assert made.rules.engine.name == engine


# Breakers.


def test_a_provider_and_a_tool_change_single_keys_of_the_breaker(folder):
    config = """[breaker]
calls = 20
open = "1s"
[providers.three]
adapter = "openai"
base_url = "http://127.0.0.1:1/v1"
breaker = { open = "2s", slow_gap = "3s" }
"""
    routes = ROUTE + TWO.replace('"two"', '"three"') + TOOL + "breaker = { enabled = false }\n"
    snapshot = folder.compile(routes, config)
    plain, own = (to.breaker for to in snapshot.routes["r"].targets)
    assert plain == BreakerRules(calls=20, open_s=1.0)
    assert own == BreakerRules(calls=20, open_s=2.0, slow_gap_s=3.0)
    assert snapshot.routes["t"].targets[0].breaker == BreakerRules(calls=20, open_s=1.0, enabled=False)


def test_a_key_that_is_set_to_the_general_default_still_counts(folder):
    """`[breaker]` says otherwise, and the provider says the default on purpose."""
    config = '[breaker]\ncalls = 20\n[providers.three]\nadapter = "openai"\nbase_url = "http://127.0.0.1:1/v1"\nbreaker = { calls = 10 }\n'
    assert folder.route("", TWO.replace('"two"', '"three"'), config).targets[1].breaker.calls == 10


@pytest.mark.parametrize(("config", "routes", "expected"), [
    ('[breaker]\nopen = "10m"\n', "", "config.toml:16:breaker.open: a breaker cannot be open longer at first than at the most (raise `open_cap`, or lower `open`)"),
    ('[breaker]\nopen_cap = "1s"\n', "", "config.toml:16:breaker.open_cap: a breaker cannot"),
    ('[providers.three]\nadapter = "openai"\nbase_url = "http://h/v1"\n[providers.three.breaker]\nopen_cap = "1s"\n', "",
     "config.toml:19:providers.three.breaker.open_cap: a breaker cannot"),
    ("", TOOL + 'breaker = { open_cap = "1s" }\n', "routes/r.toml:5:tool[0].breaker.open_cap: a breaker cannot"),
])
def test_a_breaker_that_contradicts_itself_is_refused_where_it_does(folder, config, routes, expected):
    [problem] = folder.problems(routes, config)
    assert problem.startswith(expected)


# Tools.


def test_a_tool_has_its_retry_budget_and_is_hedged_where_it_only_reads(folder):
    said = 'effect = "read"\n[tool.retry]\nattempts = 3\nbudget = { share = 0.1, per_second = 1.0 }\n[tool.hedge]\nafter = "1s"\n'
    made = folder.compile(TOOL + said).routes["t"]
    assert (made.retry, made.hedge) == (Retry(3, 0.25, 5.0, 0.1, 1.0), Hedge(1.0, 0.05))


def test_a_tool_that_must_not_be_called_twice_is_tried_once(folder):
    assert folder.compile(TOOL).routes["t"].retry.attempts == 1


@pytest.mark.parametrize("effect", ["idempotent", "at_most_once"])
def test_a_tool_that_does_something_is_not_hedged(folder, effect):
    [problem] = folder.problems(TOOL + f'effect = "{effect}"\nhedge = {{ after = "1s" }}\n')
    assert problem.startswith(f'routes/r.toml:6:tool[0].hedge.after: a call that is "{effect}" is not made twice at a time (say effect = "read"')


# What contradicts itself.


@pytest.mark.parametrize(("said", "expected"), [
    (TWO.replace("}", ", canary = 5 }"), "routes/r.toml:3:route[0].targets[0].canary: every target is a canary"),
    (TWO.replace(" }]", ', canary = 60 }, { provider = "two", model = "n", canary = 50 }]'), "route[0].targets: the canaries take 110 % of the calls together"),
    (TWO.replace("two", "one"), "routes/r.toml:3:route[0].targets[1]: one/m is a target of this route already (`retry` tries one again)"),
    (TWO + 'stream = { on_failure = "continue" }\n', "routes/r.toml:4:route[0].stream.on_failure: no target goes on with a stream that broke off (say `continues = true`"),
    (TWO.replace(" }]", ", continue_with = { x = 1 } }]"), "routes/r.toml:3:route[0].targets[1].continue_with: the target is not said to go on"),
    ('targets = [{ provider = "one", model = "m" }]\nstrategy = "cascade"\naccept = "true"\n', "routes/r.toml:5:route[0].accept: there is one target"),
    (TWO + 'strategy = "cascade"\naccept = "answer.lenght > 1"\n',
     "routes/r.toml:5:route[0].accept: undeclared reference to 'answer.lenght' at character"),
    (TWO + 'on_exhausted = "approve"\n', "routes/r.toml:4:route[0].on_exhausted: there are no validators"),
    (TWO + 'mirrors = [{ provider = "tow", model = "m" }]\n', """routes/r.toml:4:route[0].mirrors[0].provider: there is no provider 'tow' (did you mean "two"?)"""),
    (TWO + '[route.classifier]\nprovider = "tow"\nmodel = "m"\ntasks = ["a", "b"]\ndefault = "a"\n[[route.rules]]\nwhen = \'task == "a"\'\ntargets = ["*"]\n',
     "routes/r.toml:5:route[0].classifier.provider: there is no provider 'tow'"),
    (TWO + '[route.classifier]\nprovider = "small"\nmodel = "m"\ntasks = ["a", "b"]\ndefault = "a"\n[[route.rules]]\nwhen = \'task == "a"\'\ntargets = ["*"]\n',
     "routes/r.toml:5:route[0].classifier.provider: its adapter cannot do this: chat"),
    (TWO + '[route.classifier]\nprovider = "one"\nmodel = "m"\ntasks = ["a", "b"]\ndefault = "a"\n', "routes/r.toml:4:route[0].classifier: no rule of the route reads `task`"),
    (TWO + '[route.classifier]\nprovider = "one"\nmodel = "m"\ntasks = ["a", "b"]\ndefault = "a"\n[[route.rules]]\nwhen = "true"\ntargets = ["*"]\n',
     "routes/r.toml:4:route[0].classifier: no rule of the route reads `task`"),
    (TWO + '[[route.rules]]\nwhen = "true"\ntargets = ["one/m", "tow/*"]\n', "routes/r.toml:6:route[0].rules[0].targets[1]: no target of this route fits 'tow/*'"),
    (TWO + '[[route.rules]]\nwhen = "request.size > "\ntargets = ["*"]\n', "routes/r.toml:5:route[0].rules[0].when: "),
    (TWO.replace(" }]", ", canary = 5 }]") + '[[route.rules]]\nwhen = "true"\ntargets = ["two/*"]\n', "routes/r.toml:6:route[0].rules[0].targets: all of them are canaries"),
    (TWO + '[[route.validators]]\njson_schema = { type = "objekt" }\n', "routes/r.toml:5:route[0].validators[0].json_schema: /type: "),
    (TWO + '[[route.validators]]\nmatches = "("\n', "routes/r.toml:5:route[0].validators[0].matches: RE2 does not take the pattern '('"),
    (TWO + '[[route.validators]]\nexpression = "answer.valid"\n', "routes/r.toml:5:route[0].validators[0].expression: `answer.valid` says whether"),
    (TWO + 'operations = ["chat", "embeddings"]\nvalidators = [{ non_empty = true }]\n', "routes/r.toml:4:route[0].operations: vectors have no words"),
    (TWO + 'mirrors = [{ provider = "small", model = "m" }]\noperations = ["chat"]\n', "routes/r.toml:5:route[0].operations: not every target's adapter can do this: chat"),
    (TWO.replace(" }]", ", continues = true }]") + 'stream = { on_failure = "continue" }\nvalidators = [{ non_empty = true }]\n',
     "routes/r.toml:4:route[0].stream.on_failure: answers that are looked at as a whole are held"),
    (TWO + 'hedge = { after = "1s", share = 0 }\n', "routes/r.toml:4:route[0].hedge.share: none of the calls may have a second attempt"),
    (TWO.replace(" }]", ", continues = true, continue_with = { max_tokens = 9 } }]"), "continue_with.max_tokens: is the caller's to say"),
    (TWO + 'mirrors = [{ provider = "one", model = "m" }]\n', "routes/r.toml:4:route[0].mirrors[0]: one/m gets the call already"),
    (TWO + 'mirrors = [{ provider = "one", model = "x" }, { provider = "one", model = "x" }]\n', "mirrors[1]: one/x gets the call already"),
    (TWO + 'aliases = ["x", "r"]\n', "routes/r.toml:4:route[0].aliases[1]: the name 'r' is taken (first at routes/r.toml:1)"),
    (TWO + 'aliases = ["x", "x"]\n', "routes/r.toml:4:route[0].aliases[1]: the name 'x' is taken"),
])
def test_a_route_that_contradicts_itself_is_refused_with_its_place(folder, said, expected):
    [problem] = folder.problems(ROUTE + said)
    assert expected in problem


def test_an_alias_takes_no_other_routes_and_no_tools_name(folder):
    other = ROUTE.replace('"r"', '"q"') + TWO
    assert folder.problems(ROUTE + TWO + 'aliases = ["q"]\n' + other) == [
        "routes/r.toml:4:route[0].aliases[0]: the name 'q' is taken (first at routes/r.toml:5)"]
    assert folder.problems(ROUTE + TWO + 'aliases = ["t"]\n' + TOOL) == [
        "routes/r.toml:6:tool[0].name: 't' is defined twice (first at routes/r.toml:1)"]


def test_a_validator_says_one_thing(folder):
    assert len(folder.problems(ROUTE + TWO + '[[route.validators]]\nnon_empty = true\nmatches = "a"\n')) == 1


def test_an_engine_that_is_not_there_is_told_once(folder, monkeypatch):
    def absent(*_: Any) -> Any:
        raise ImportError("no such engine")

    monkeypatch.setattr("gateway.core.route_rules.open_engine", absent)
    monkeypatch.setattr("gateway.core.rules.open_engine", absent)
    [problem] = folder.problems(ROUTE + TWO + '[[route.rules]]\nwhen = "true"\ntargets = ["*"]\n', '[policy]\nengine = "cel-expr-python"\n')
    assert "cel-expr-python is not installed here" in problem


def test_where_detectors_cannot_be_had_that_alone_is_told(folder):
    config = '[policy]\ndetectors = ["gone"]\n'
    [problem] = folder.problems(ROUTE + TWO + '[[route.rules]]\nwhen = "true"\ntargets = ["*"]\n', config)
    assert problem.startswith("config.toml:16:policy.detectors[0]: ")


def test_the_routes_that_ship_as_comments_compile(folder, question_of_code):
    """What a newcomer takes the comment signs from has to work."""
    text = SHIPPED.read_text()
    blocks = re.findall(r"(?:^# .*\n)*^#\n((?:^# .*\n)+)", text[:text.index("# With a provider named")], re.MULTILINE)
    shown = "".join(re.sub(r"^# ", "", block, flags=re.MULTILINE) for block in blocks)
    routes = folder.compile(shown).routes
    assert set(routes) == {"demo-cascade", "demo-shares", "demo-tasks"}
    rules = routes["demo-tasks"].rules
    assert rules is not None
    assert rules.choose(question_of_code, "code").targets == ("simulator/sim-model", "*")


@pytest.fixture
def question_of_code() -> Question:
    call = Call("c", Principal("k"), "openai", "chat", "r", {}, False, 10, 0)
    return Question("request", call, 0, budgets=BudgetFacts({}, {}, {}))


def test_the_longest_that_a_call_takes_is_known(folder):
    assert folder.compile(ROUTE + TWO + 'deadlines = { total = "20m" }\n' + TOOL).longest_s == 1200.0
    assert folder.compile("").longest_s == 0.0
