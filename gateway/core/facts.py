"""What rules may read: one schema for the type checker, the extraction and the documentation.

A body comes from a client and may hold anything anywhere. An extract returns exactly its declared type or raises
`UnreadableFactError`; a rule that reads such a fact counts as not evaluated, which fails closed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, TypeVar

from gateway.call import Json, Said, ToolCall, ToolResult
from gateway.core.body import UnreadableFactError, bounded, max_tokens, messages, params, strings, texts, tools_offered
from gateway.core.decision import PHASES, Phase
from gateway.core.matching import MatchKeys
from gateway.core.question import LARGE, BudgetFacts, Question
from gateway.session import SessionFacts, SessionQuery

CelType: TypeAlias = Literal[
    "bool", "int", "string", "timestamp", "duration", "list(string)", "list(dyn)", "map(string, string)", "map(string, int)",
    "map(string, dyn)", "dyn"]

Bulk = TypeVar("Bulk", dict[str, Json], list[Json])
_PYTHON_TYPES: Final[Mapping[CelType, type]] = {  # of `dyn` anything is
    "bool": bool, "int": int, "string": str, "timestamp": datetime, "duration": timedelta, "list(string)": list, "list(dyn)": list,
    "map(string, string)": dict, "map(string, int)": dict, "map(string, dyn)": dict}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Fact:
    """One variable of the rules. `extract` raises nothing but `UnreadableFactError`."""

    name: str
    type: CelType
    phases: tuple[Phase, ...]
    doc: str
    example: str
    extract: Callable[[Question], Any]

    def read(self, question: Question) -> Any:
        """The value, which is of the declared type: an engine may take another one for a plain "no"."""
        value = self.extract(question)
        if type(value) is not _PYTHON_TYPES.get(self.type, type(value)):
            raise UnreadableFactError(f"it is not of the type {self.type}")
        return value


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known where rules are asked: match keys, the values that candidate rules read, why others are unreadable.

    `answers` are those to what rules ask of the session. `allowed`: what no rule decides may go on. `subject` is the tool's name.
    `large`: one step of an engine for all rules could take too long.
    """

    keys: MatchKeys
    values: dict[str, Any]
    unreadable: Mapping[str, str]
    answers: Mapping[SessionQuery, Any] = field(default_factory=dict)
    allowed: bool = True
    subject: str = ""
    large: bool = False


def _tool(question: Question) -> ToolCall:
    if question.tool is None:
        raise UnreadableFactError("no tool is called here")
    return question.tool


def _result(question: Question) -> ToolResult:
    if question.result is None:
        raise UnreadableFactError("there is no result here")
    return question.result


def _said(question: Question) -> Said:
    if question.said is None:
        raise UnreadableFactError("there is no answer here")
    return question.said


def _session(question: Question) -> SessionFacts:
    if question.session is None:
        raise UnreadableFactError("the call belongs to no session: it has to send X-Lockgate-Session, or what `[sessions] derive` names")
    return question.session


def _budgets(question: Question) -> BudgetFacts:
    if question.budgets is None:
        raise UnreadableFactError("the accounts were not looked at")
    return question.budgets


def _bulk(question: Question, value: Bulk) -> Bulk:
    """What stands in the body, where it is not too much for an engine; a small body never is."""
    return bounded(value) if question.call.size >= LARGE else value


def _content(question: Question) -> Any:
    content = _result(question).content
    return bounded(content) if isinstance(content, dict | list) else content


def _usage(question: Question) -> dict[str, int]:
    usage = _said(question).usage
    if usage is None:
        raise UnreadableFactError("the provider did not say what it used")
    return {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}


def _texts(question: Question) -> list[str]:
    """The texts of what is judged."""
    if question.phase == "response":
        return [_said(question).text]
    if question.phase == "tool_result":
        return [_result(question).text]
    return texts(question.call) if question.phase == "request" else list(strings(_tool(question).args))


def _offered(question: Question) -> list[str]:
    return [] if question.call.operation == "tool" else list(tools_offered(question.call.body))


def match_keys(question: Question, *, with_tools: bool) -> MatchKeys:
    """The values for `match`. Tools are looked for only where a rule asks: of a request they stand in its body."""
    call = question.call
    principal = call.principal
    tools: tuple[str, ...] | None = ()
    if question.tool is not None:
        tools = (question.tool.name,)
    elif with_tools:
        try:
            tools = tuple(_offered(question) if question.phase == "request" else _said(question).tool_calls)
        except UnreadableFactError:
            tools = None
    kinds = ("tool",) if call.operation == "tool" else ("model",)
    return MatchKeys(kinds=kinds, principals=(principal.id, principal.name), teams=(principal.team,), roles=principal.roles,
                     protocols=(call.dialect,), routes=call.names, models=call.names, tools=tools)


# The fact that `match.tools` looks at.
TOOLS_FACT: Final[Mapping[Phase, str]] = {
    "request": "tools_offered", "tool_call": "tool.name", "tool_result": "tool.name", "response": "response.tool_calls"}

_TOOL: Final[tuple[Phase, ...]] = ("tool_call", "tool_result")
_RESULT: Final[tuple[Phase, ...]] = ("tool_result",)
_RESPONSE: Final[tuple[Phase, ...]] = ("response",)
# What has to be asked of the store; the names are those of facts below.
SESSION_FACTS: Final = frozenset({"session.age", "session.labels", "session.calls", "session.spend", "session.facts"})
BUDGET_FACTS: Final = frozenset({"budget.remaining", "budget.limit", "budget.spent"})

FACTS: Final[tuple[Fact, ...]] = (
    Fact("principal.id", "string", PHASES,
         "The virtual key's public id, or `jwt:ISSUER:SUBJECT` of who sends a token; `anonymous` where authentication is off.",
         'principal.id == "anonymous"', lambda asked: asked.call.principal.id),
    Fact("principal.name", "string", PHASES, "The virtual key's name.",
         'principal.name.startsWith("ci-")', lambda asked: asked.call.principal.name),
    Fact("principal.team", "string", PHASES, "The key's team, empty if it has none.",
         'principal.team == "search"', lambda asked: asked.call.principal.team),
    Fact("principal.org", "string", PHASES, "The key's organisation, empty if it has none.",
         'principal.org != "acme"', lambda asked: asked.call.principal.org),
    Fact("principal.roles", "list(string)", PHASES, "The key's roles.",
         '!("admin" in principal.roles)', lambda asked: list(asked.call.principal.roles)),
    Fact("principal.on_behalf_of", "string", PHASES, "Whom the caller acts for, as its token says; empty for a virtual key.",
         'principal.on_behalf_of == ""', lambda asked: asked.call.principal.on_behalf_of),
    Fact("protocol", "string", PHASES, "The dialect that the caller speaks.",
         'protocol == "openai"', lambda asked: asked.call.dialect),
    Fact("route", "string", PHASES, "The route's own name, whatever alias of it the caller asked for.",
         'route == "fast"', lambda asked: asked.call.route),
    Fact("model", "string", PHASES, "The same as `route`.",
         'model.glob("gpt-*")', lambda asked: asked.call.route),
    Fact("request.operation", "string", PHASES, "`chat`, `completions`, `embeddings`, or `tool` for an HTTP tool.",
         'request.operation == "chat"', lambda asked: asked.call.operation),
    Fact("request.model", "string", PHASES, "The model's name as the caller wrote it: where a route has aliases it may be one of them.",
         'request.model.endsWith("-preview")', lambda asked: asked.call.asked or asked.call.route),
    Fact("request.stream", "bool", PHASES, "Whether the answer is to be streamed.",
         "!request.stream", lambda asked: asked.call.stream),
    Fact("request.size", "int", PHASES, "The body's length in bytes, as received.",
         "request.size > 1000000", lambda asked: asked.call.size),
    Fact("request.max_tokens", "int", PHASES,
         "The larger of `max_tokens` and `max_completion_tokens`; 0 if neither is given.",
         "request.max_tokens > 32000", lambda asked: max_tokens(asked.call)),
    Fact("request.params", "map(string, dyn)", PHASES,
         "The body without its bulk (`messages`, `input`, `prompt`, `tools`, `functions`). Guard with `has()`.",
         "has(request.params.temperature) && double(request.params.temperature) > 1.5", lambda asked: _bulk(asked, params(asked.call))),
    Fact("request.body", "map(string, dyn)", PHASES, "The whole body. Its cost grows with the body's size.",
         'has(request.body.user) && request.body.user == ""', lambda asked: _bulk(asked, dict(asked.call.body))),
    Fact("messages", "list(dyn)", PHASES,
         "The body's `messages`, empty if there are none. Its cost grows with their size.",
         'messages.exists(m, m.role == "system")', lambda asked: _bulk(asked, messages(asked.call))),
    Fact("texts", "list(string)", PHASES,
         "Every text of the call, whatever its operation: contents of messages and of their parts, reasoning, tool results, arguments "
         "of tool calls, `prompt`, `suffix`, `input`. Tokens in place of a text are unreadable. In the other phases the texts of what is "
         "judged: the arguments, the result, the answer.",
         'texts.exists(t, t.contains("payroll"))', _texts),
    Fact("tools_offered", "list(string)", PHASES, "The names of the tools that the body offers.",
         'tools_offered.exists(t, t.startsWith("bank."))', _offered),
    Fact("session.id", "string", PHASES,
         "`X-Lockgate-Session`, else what the session is derived from (`[sessions] derive`); empty if neither.",
         'session.id != ""', lambda asked: asked.call.origin.session or ""),
    Fact("session.age", "duration", PHASES, "How long ago the session's first call came.",
         'session.age > duration("24h")', lambda asked: timedelta(seconds=_session(asked).age_s)),
    Fact("session.labels", "list(string)", PHASES,
         "What `log` rules have said of the session's calls, this one's included, and have not taken back (`unlabel`).",
         '"secret" in session.labels', lambda asked: list(_session(asked).labels)),
    Fact("session.calls", "int", PHASES, "How many calls of the session came before and were let through.",
         "session.calls > 500", lambda asked: _session(asked).calls),
    Fact("session.spend", "int", PHASES, "What the session has cost so far, as far as it is known; compare it with `usd()`.",
         'session.spend > usd("5.00")', lambda asked: _session(asked).spend_nusd),
    Fact("session.facts", "map(string, dyn)", PHASES,
         "What was put on record of the session from outside (`PUT /-/sessions/{id}/facts/{name}`). Guard with `in`.",
         '"tier" in session.facts && session.facts["tier"] == "gold"', lambda asked: dict(_session(asked).facts)),
    Fact("budget.remaining", "map(string, int)", PHASES,
         "What is neither spent nor set aside on the accounts that bind the call: by scope (`team`, `key`, …) that of the tightest one, "
         "`any` that of the tightest of all. Compare it with `usd()`. Guard with `in`: a scope that no budget binds is not there.",
         '"team" in budget.remaining && budget.remaining["team"] < usd("5.00")', lambda asked: dict(_budgets(asked).remaining)),
    Fact("budget.limit", "map(string, int)", PHASES, "The limits of the same accounts, raises included.",
         '"key" in budget.limit && budget.limit["key"] == usd("0")', lambda asked: dict(_budgets(asked).limit)),
    Fact("budget.spent", "map(string, int)", PHASES, "What is booked on them; also on accounts that have a soft limit alone.",
         '"any" in budget.spent && budget.spent["any"] > usd("100.00")', lambda asked: dict(_budgets(asked).spent)),
    Fact("user", "string", PHASES, "Who asks, as the caller says: `X-Lockgate-User`, or the body's `user`; empty if neither.",
         'user == ""', lambda asked: asked.call.user),
    Fact("run", "string", PHASES, "`X-Lockgate-Run`, empty if not sent.",
         'run.startsWith("nightly-")', lambda asked: asked.call.origin.run or ""),
    Fact("step", "string", PHASES, "`X-Lockgate-Step`, empty if not sent.",
         'step == "plan"', lambda asked: asked.call.origin.step or ""),
    Fact("tags", "map(string, string)", PHASES, "`X-Lockgate-Tags`. Guard with `in`.",
         '"env" in tags && tags["env"] == "prod"', lambda asked: dict(asked.call.origin.tags)),
    Fact("env", "map(string, string)", PHASES, "`[policy] env` of config.toml. Guard with `in`.",
         '"region" in env && env["region"] == "eu"', lambda asked: dict(asked.env)),
    Fact("now", "timestamp", PHASES, "Wall time when the call is judged, UTC, to the microsecond.",
         "now.getHours() < 6", lambda asked: _EPOCH + timedelta(microseconds=asked.now_ns // 1000)),
    Fact("tool.name", "string", _TOOL, "The tool that is called.",
         'tool.name.startsWith("bank.")', lambda asked: _tool(asked).name),
    Fact("tool.args", "map(string, dyn)", _TOOL, "The arguments, parsed. Guard with `has()`.",
         "has(tool.args.amount) && double(tool.args.amount) > 1000.0", lambda asked: bounded(dict(_tool(asked).args))),
    Fact("tool.via", "string", _TOOL, "Who calls: `model`, proposed in an answer, or `http`, called by a client.",
         'tool.via == "model"', lambda asked: _tool(asked).via),
    Fact("tool.server", "string", _TOOL, "Where the gateway calls it: `http`; empty for a tool that the application itself runs.",
         'tool.server == "http"', lambda asked: _tool(asked).server),
    Fact("tool.annotations", "map(string, dyn)", _TOOL,
         "What the tool's declaration says of it: `effect`, `irreversible`, `strict`. Guard with `has()`.",
         'has(tool.annotations.effect) && tool.annotations.effect != "read"', lambda asked: dict(_tool(asked).annotations)),
    Fact("result", "dyn", _RESULT, "What the tool gave back: parsed where it is JSON, else the text.",
         "type(result) == map && has(result.error)", _content),
    Fact("result_text", "string", _RESULT, "The same as text.",
         'result_text.contains("ignore previous")', lambda asked: _result(asked).text),
    Fact("tool.released", "bool", _RESULT, "Whether the gateway let that tool call through. False is a bypass.",
         "!tool.released", lambda asked: _result(asked).released),
    Fact("response.text", "string", _RESPONSE, "The text of the answer. A stream is held until its end for a rule "
         "that reads it.",
         'response.text.contains("internal only")', lambda asked: _said(asked).text),
    Fact("response.tool_calls", "list(string)", _RESPONSE, "The names of the tools that the answer calls.",
         "response.tool_calls.size() > 8", lambda asked: list(_said(asked).tool_calls)),
    Fact("response.finish_reason", "string", _RESPONSE, "Why the answer ended, empty if it does not say.",
         'response.finish_reason == "length"', lambda asked: _said(asked).finish_reason),
    Fact("response.usage", "map(string, dyn)", _RESPONSE, "`input_tokens` and `output_tokens`. Unreadable where the provider did not say.",
         "response.usage.output_tokens > 10000", _usage),
)


def facts_of(phase: Phase) -> Mapping[str, Fact]:
    """The facts that rules of this phase may read, by name."""
    return {fact.name: fact for fact in FACTS if phase in fact.phases}


def variables_table() -> str:
    """The schema as the Markdown table of the guide."""
    lines = ["| variable | type | phases | what | example |", "|---|---|---|---|---|"]
    for fact in FACTS:
        example = fact.example.replace("|", "\\|")
        lines.append(f"| `{fact.name}` | `{fact.type}` | {', '.join(fact.phases)} | {fact.doc} | `{example}` |")
    return "\n".join(lines)
