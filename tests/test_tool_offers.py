"""The tools that a request offers, and what becomes of a call of one: described, read, checked, refused in words."""

from typing import Any

import pytest

from gateway.call import Call, Principal, ToolCall
from gateway.core.decision import Denied
from gateway.errors import Forbidden
from gateway.schemas import SchemaCache
from gateway.tool_config import ToolConfig
from gateway.tool_offers import called, definitions, described, read, refused, say, unfit, unfitting, without_tools
from gateway.tools import Tool, compile_tool
from gateway.wire.tool_calls import LEGACY, Proposed

SCHEMA = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def call(**body: Any) -> Call:
    return Call("call_1", Principal("key_1"), "openai", "chat", "fast", body, stream=False, size=2, received_ns=0)


def denied(rule: str | None = "no", message: str | None = "Not so.") -> Denied:
    return Denied(rule, message, "Ask Ada.", (), (), "sha256:x")


def declared() -> Tool:
    given = ToolConfig.model_validate({"name": "pay", "method": "POST", "url": "https://bank.example/pay", "effect": "at_most_once", "arguments": SCHEMA})
    tool, problems = compile_tool(given)
    assert tool is not None, problems
    return tool


# Taking tools out of a request.

def test_a_tool_is_taken_out_and_nothing_else_changes():
    body = {"model": "fast", "tools": [function("see"), function("shell")], "tool_choice": "auto", "functions": [{"name": "shell"}, {"name": "see"}]}
    assert without_tools(body, {"shell": denied()}) == {
        "model": "fast", "tools": [function("see")], "tool_choice": "auto", "functions": [{"name": "see"}]}
    assert len(body["tools"]) == 2


@pytest.mark.parametrize("hiding", [
    {"type": "shell"}, {"type": "custom", "custom": {"name": "shell"}}, {"type": "function", "name": "shell"},
    {"type": "namespace", "name": "os", "tools": [function("see"), function("shell")]}, {"type": "function", "function": {"name": "see"}, "name": "shell"}])
def test_a_tool_is_found_in_whatever_form_it_is_offered(hiding):
    assert without_tools({"tools": [function("see"), hiding]}, {"shell": denied()}) == {"tools": [function("see")]}


def test_what_is_said_about_tools_goes_with_the_last_of_them():
    """Providers refuse a choice among tools where there are none."""
    body = {"model": "fast", "tools": [function("shell")], "tool_choice": "auto", "parallel_tool_calls": True, "functions": [{"name": "shell"}], LEGACY: "auto"}
    assert without_tools(body, {"shell": denied()}) == {"model": "fast"}


@pytest.mark.parametrize("choice", [
    {"type": "function", "function": {"name": "shell"}}, {"type": "custom", "custom": {"name": "shell"}}, {"name": "shell"}, {"type": "shell"},
    {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("see"), function("shell")]}}])
def test_a_request_that_asks_for_such_a_tool_is_refused_in_the_name_of_the_rule(choice):
    with pytest.raises(Forbidden, match=r"The tool shell is asked for and may not be called\. Not so\.") as caught:
        without_tools({"tools": [function("see"), function("shell")], "tool_choice": choice}, {"shell": denied()})
    assert (caught.value.rule, caught.value.remedy) == ("no", "Ask Ada.")


def test_the_older_form_asks_for_a_tool_as_well():
    with pytest.raises(Forbidden, match="shell"):
        without_tools({"functions": [{"name": "shell"}, {"name": "see"}], LEGACY: {"name": "shell"}}, {"shell": denied(None, None)})


def test_a_call_that_is_required_cannot_be_made_of_no_tool():
    body = {"tools": [function("shell")], "tool_choice": "required"}
    with pytest.raises(Forbidden, match="shell"):
        without_tools(body, {"shell": denied()})
    assert without_tools({**body, "tools": [function("see"), function("shell")]}, {"shell": denied()})["tools"] == [function("see")]


# What a model proposes.

def test_a_call_is_described_by_its_declaration_or_by_what_the_request_says():
    offered = definitions(call(tools=[function("pay", strict=True), function("see")]))
    assert described("pay", offered["pay"], None) == ToolCall("", "pay", {}, "model", "", {"strict": True})
    assert described("see", offered["see"], None).annotations == {}
    assert described("other", (), None).annotations == {}
    assert described("pay", offered["pay"], declared()) == ToolCall("", "pay", {}, "model", "http", {"effect": "at_most_once", "irreversible": False})


@pytest.mark.parametrize("body", [{}, {"tools": "x"}, {"tools": ["x", {}, {"function": 5}, {"name": 5}, {"function": {"name": ["pay"]}}]}])
def test_what_is_no_definition_says_nothing(body):
    assert definitions(call(**body)) == {}


def test_a_name_may_be_defined_more_than_once():
    given = call(tools=[function("pay", strict=True), {"type": "custom", "name": "see"}], functions=[{"name": "pay"}])
    assert definitions(given) == {"pay": [{"name": "pay", "strict": True}, {"name": "pay"}], "see": [{"type": "custom", "name": "see"}]}


def proposed(arguments: str = "{}", name: str = "pay", kind: str = "function") -> Proposed:
    return Proposed("c1", name, arguments, kind)


def test_a_proposal_that_fits_is_read():
    made = read(proposed('{"amount": 5}'), call(tools=[function("pay", parameters=SCHEMA)]), None, SchemaCache())
    assert made == (ToolCall("c1", "pay", {"amount": 5}), "")
    assert read(proposed("ls", kind="custom"), call(), None, SchemaCache()) == (ToolCall("c1", "pay", {"input": "ls"}), "")


@pytest.mark.parametrize("name", ["", " ", "pay ", "\npay", "pa\u200by", "pa\u202ey", "pay\x00", "p" * 1025])
def test_a_name_that_no_rule_can_be_written_for_is_not_read(name):
    """Who looks it up may be less exact: trim it, or drop what cannot be seen."""
    tool, wrong = read(proposed(name=name), call(), None, SchemaCache())
    assert wrong == "the tool's name cannot be read"
    assert tool.args == {}


@pytest.mark.parametrize("name", ["pay", "bank.pay", "bank/pay", "bänk pay", "支付", "p" * 1024])
def test_other_names_are_read(name):
    assert read(proposed(name=name), call(), None, SchemaCache())[1] == ""


@pytest.mark.parametrize(("arguments", "says"), [("{", "not JSON"), ("[1]", "not a JSON object"), ('{"amount": "x"}', "/amount"), ("{}", "amount")])
@pytest.mark.parametrize("known", [None, declared()], ids=["offered", "declared"])
def test_arguments_that_do_not_fit_are_told(arguments, says, known):
    body = {} if known else {"tools": [function("pay", parameters=SCHEMA)]}
    tool, wrong = read(proposed(arguments), call(**body), known, SchemaCache())
    assert says in wrong
    assert tool.name == "pay"


def test_every_definition_of_a_name_has_to_fit():
    """Nobody knows which of them the application goes by."""
    given = call(tools=[function("pay", parameters={}), function("pay", parameters=SCHEMA)], functions=[{"name": "pay"}])
    assert unfitting("pay", {"amount": 1}, given, [], SchemaCache()) == ""
    assert "amount" in unfitting("pay", {}, given, [], SchemaCache())
    assert "amount" in unfit(ToolCall("c1", "pay", {}), given, None, SchemaCache())


def test_what_a_declaration_says_comes_first():
    assert unfitting("pay", {}, call(), ["first", "second"], SchemaCache()) == "first"


@pytest.mark.parametrize("schema", [{"$ref": "http://127.0.0.1:9/x"}, {"$ref": "file:///etc/hostname"}, {"type": "nope"}, {"pattern": "(?=a)"}, "x", 5, []])
def test_a_schema_that_cannot_be_used_lets_no_call_pass(schema):
    wrong = unfitting("pay", {}, call(tools=[function("pay", parameters=schema)]), [], SchemaCache())
    assert wrong.startswith("the tool's own schema cannot be used")


def test_a_result_is_of_the_call_that_the_conversation_tells():
    assert called("c1", "pay", '{"a": 1}') == ToolCall("c1", "pay", {"a": 1})
    assert called("c1", "pay", "{") == ToolCall("c1", "pay", {})


# What is said in place of a call.

def test_a_refusal_names_the_tool_the_rule_and_what_to_do():
    assert refused("pay", "Not so.", "no", "Ask Ada.") == "The call of the tool pay was refused (rule no): Not so. Ask Ada."
    assert refused("pay", "Not so.", "", None) == "The call of the tool pay was refused: Not so."


@pytest.mark.parametrize(("message", "withheld", "after"), [
    ({}, "text", {"content": "no"}), ({"content": None}, "text", {"content": "no"}), ({"content": ""}, "text", {"content": "no"}),
    ({"content": "a"}, "text", {"content": "a\n\nno"}), ({"content": "a"}, "refusal", {"content": "a", "refusal": "no"}),
    ({"content": "a"}, "drop", {"content": "a"}), ({"content": [{"type": "text", "text": "a"}]}, "text", {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "no"}]})])
def test_a_refusal_stands_where_it_is_configured_to(message, withheld, after):
    say(message, "no", withheld)
    assert message == after


def test_two_refusals_are_two_paragraphs():
    message: dict[str, Any] = {}
    say(message, "no", "text")
    say(message, "nor this", "text")
    assert message == {"content": "no\n\nnor this"}
