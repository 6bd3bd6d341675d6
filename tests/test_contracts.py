"""Effect contracts of tools are put together and checked at load: every mistake with file, line and key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.deployment import read_deployment
from gateway.errors import ConfigError
from gateway.snapshot import Snapshot, compile_snapshot

STATUS = """
[[tool]]
name = "bank.status"
method = "GET"
url = "https://bank.example/v1/payments/{id}"
effect = "read"
[tool.arguments]
required = ["id"]
[tool.arguments.properties]
id = { type = "string" }
"""
PAY = """
[[tool]]
name = "bank.pay"
method = "POST"
url = "https://bank.example/v1/payments"
irreversible = true
[tool.arguments.properties]
id = { type = "string" }
[tool.verify]
tool = "bank.status"
arguments = { id = "arguments.id" }
happened = 'result.status == "paid"'
"""

Compile = Callable[[str], Snapshot]


@pytest.fixture
def compiled(tmp_path: Path) -> Compile:
    def compile_it(tools: str) -> Snapshot:
        for name, text in (("config.toml", "[auth]\nrequired = false\n"), ("routes/r.toml", tools), ("policies/p.toml", "")):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return compile_snapshot(read_deployment(tmp_path / "config.toml"), {})
    return compile_it


def problems(compiled: Compile, tools: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compiled(tools)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("tools", [STATUS + PAY, PAY + STATUS])
def test_a_tool_knows_how_its_end_is_found_out(compiled, tools):
    made = compiled(tools).tools
    verify: Any = made["bank.pay"].verify
    assert (verify.tool, list(verify.arguments), verify.happened.source) == ("bank.status", ["id"], 'result.status == "paid"')
    assert made["bank.status"].verify is None


def test_rules_can_read_what_cannot_be_undone(compiled):
    made = compiled(STATUS + PAY).tools
    assert made["bank.pay"].annotations == {"effect": "at_most_once", "irreversible": True}
    assert made["bank.status"].annotations == {"effect": "read", "irreversible": False}


@pytest.mark.parametrize(("before", "after", "told"), [
    ('tool = "bank.status"', 'tool = "bank.state"', ["routes/r.toml:20:tool[1].verify.tool: there is no tool 'bank.state'"]),
    ('tool = "bank.status"', 'tool = "bank.pay"', ["routes/r.toml:20:tool[1].verify.tool: bank.pay does more than read: its effect is 'at_most_once'"]),
    ("{ id =", "{ idd =", ["routes/r.toml:21:tool[1].verify.arguments.idd: bank.status has no argument 'idd'",
                           "routes/r.toml:21:tool[1].verify.arguments: bank.status requires the argument 'id'"]),
    ("arguments.id", "args.id", ["routes/r.toml:21:tool[1].verify.arguments.id: undeclared reference to 'args.id'"]),
    ("result.status", "results.status", ["routes/r.toml:22:tool[1].verify.happened: undeclared reference to 'results.status'"]),
    ('result.status == "paid"', "true", ["routes/r.toml:22:tool[1].verify.happened: it reads nothing"]),
    ('result.status == "paid"', '"paid"', ["routes/r.toml:22:tool[1].verify.happened: the expression gives string, not bool"]),
    ("happened", "happend", ["routes/r.toml:22:tool[1].verify.happend: unknown key", "routes/r.toml:19:tool[1].verify.happened: is missing"]),
    ("irreversible = true", 'effect = "read"\nirreversible = true',
     ['routes/r.toml:17:tool[1].irreversible: a tool with effect = "read" changes nothing',
      'routes/r.toml:20:tool[1].verify: a tool with effect = "read" can be called again']),
])
def test_what_is_wrong_is_told_with_its_place(compiled, before, after, told):
    found = problems(compiled, STATUS + PAY.replace(before, after))
    assert len(found) == len(told), found
    for beginning in told:
        assert any(problem.startswith(beginning) for problem in found), found


def test_a_tool_that_is_wrong_itself_is_told_once(compiled):
    (found,) = problems(compiled, STATUS.replace("{id}", "{ids}") + PAY)
    assert "verify" not in found


def test_a_broken_tool_that_has_a_contract_is_told_of_both(compiled):
    found = problems(compiled, STATUS + PAY.replace("/v1/payments", "/v1/{nothing}").replace("result.status", "results.status"))
    assert len(found) == 2


def test_without_an_engine_the_rules_tell_so_and_the_contracts_nothing(compiled, monkeypatch):
    def missing(*_given: Any) -> Any:
        raise ImportError("no wheel")

    monkeypatch.setattr("gateway.contracts.open_engines", missing)
    assert compiled(STATUS + PAY).tools["bank.pay"].verify is None
