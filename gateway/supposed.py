"""A question to the rules that nobody asked: made of a case's facts, by the same parts that a real one is made of. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, assert_never

from gateway.call import NO_TAGS, Call, Json, JsonObject, Origin, Principal, Said, ToolCall, ToolResult, Usage
from gateway.case_config import BudgetFactsConfig, ByLevel, CaseConfig, FactsConfig, Level, UseConfig
from gateway.config import Deployment
from gateway.core.facts import FACTS, facts_of
from gateway.core.question import BudgetFacts, Question
from gateway.session import SessionFacts, SessionQuery
from gateway.store.answers import last_use, total
from gateway.store.rows import json_text
from gateway.wire.strict_json import dumps
from gateway.wire.tool_calls import parsed_result

# A key within a case, what is wrong there, and a hint.
Wrong: TypeAlias = tuple[tuple[str, ...], str, str | None]

NOON_NS: Final = 1_767_268_800_000_000_000  # Thursday, 2026-01-01T12:00:00Z
_TEXTS: Final = ("messages", "prompt", "suffix", "input")  # where the texts of a request stand
_TEXT_KEY: Final[Mapping[str, str]] = {"completions": "prompt", "embeddings": "input"}
_SETTLED: Final[Mapping[str, str]] = {"tool_call": "tool.args", "response": "response.text", "tool_result": "result"}
_GROUPS: Final = ("principal", "request", "session", "budget", "tool", "response")


@dataclass(frozen=True, slots=True)
class World:
    """What a question has from the deployment rather than from the call.

    `protocol` is the usual dialect, `env` `[policy] env`, `tools` the annotations of the HTTP tools by name.
    """

    protocol: str = ""
    env: Mapping[str, str] = field(default_factory=lambda: NO_TAGS)
    tools: Mapping[str, JsonObject] = field(default_factory=dict)


def world_of(deployment: Deployment) -> World:
    """The world of a deployment, from its files alone."""
    config = deployment.config
    return World(config.server.dialects[0], config.policy.env, {tool.name: {"effect": tool.effect} for tool in deployment.tools})


def wrong_facts(case: CaseConfig) -> Iterator[Wrong]:
    """What a case says that cannot be, beyond its shape: facts of another phase, or two that say different things."""
    facts = case.facts
    known = facts_of(case.phase)
    phases = {fact.name: fact.phases for fact in FACTS}
    for name in _given(facts):
        if name not in known:
            yield ("facts", *name.split(".")), f"is no fact of phase {case.phase}", f"only of {' and '.join(phases[name])}"
    if facts.texts is not None and case.phase != "request":
        yield ("facts", "texts"), "follows from what is judged", f"give `{_SETTLED[case.phase]}`"
    if facts.texts is not None and facts.messages is not None:
        yield ("facts", "texts"), "follows from `messages`", "give one of the two"
    routes = list(dict.fromkeys(_routes(facts)))
    if len(routes) > 1:
        yield ("facts",), f"`route`, `model` and `request.model` are the same, and here they are {' and '.join(routes)}", "give one of them"
    if case.phase in ("tool_call", "tool_result") and case.call is None and not facts.tool.name:
        yield ("facts", "tool", "name"), f"is missing: phase {case.phase} is about a tool", None


def question_of(case: CaseConfig, queries: Iterable[SessionQuery], world: World) -> Question:
    """The question that a case's facts make. `queries` are what the rules ask of the session."""
    facts = case.facts
    now_ns = next((at for at in (case.now, facts.now) if at is not None), NOON_NS)
    tool = _tool(facts, world) if case.phase in ("tool_call", "tool_result") else None
    return Question(
        case.phase, _call(facts, tool, world, now_ns, in_session=_in_session(case)), now_ns, tool=tool,
        result=_result(facts) if case.phase == "tool_result" else None, said=_said(facts) if case.phase == "response" else None,
        session=_session(case, queries, now_ns) if _in_session(case) else None, env=world.env if facts.env is None else facts.env,
        known_tool=tool is not None and tool.server == "http", budgets=_budgets(facts.budget),
    )


def _given(facts: FactsConfig) -> Iterator[str]:
    """The names of the facts that are given."""
    for name in sorted(facts.model_fields_set):
        if name in _GROUPS:
            yield from (f"{name}.{part}" for part in sorted(getattr(facts, name).model_fields_set))
        else:
            yield name


def _routes(facts: FactsConfig) -> Iterator[str]:
    return (name for name in (facts.route, facts.model, facts.request.model) if name is not None)


def _call(facts: FactsConfig, tool: ToolCall | None, world: World, now_ns: int, *, in_session: bool) -> Call:
    asked, who = facts.request, facts.principal
    http = asked.operation == "tool" or (tool is not None and tool.via == "http")
    body = dict(tool.args) if http and tool is not None else _body(facts)
    written_as: str = asked.operation or next((kind for kind, key in _TEXT_KEY.items() if key in body), "chat")
    written = body.get("model")
    named = [*_routes(facts), *([tool.name] if http and tool is not None else []), *([written] if isinstance(written, str) else []), ""]
    if named[0] and not http:
        body["model"] = named[0]
    if written_as == "chat" and not http and "body" not in asked.model_fields_set:
        body.setdefault("messages", [])  # no chat comes without them, and a system message has to have a place
    return Call(
        id="call_case", principal=Principal(who.id, who.name, who.team, who.org, who.roles, on_behalf_of=who.on_behalf_of),
        dialect=("tools" if http else world.protocol) if facts.protocol is None else facts.protocol,
        operation="tool" if http else written_as, route=named[0],
        body=body, stream=body.get("stream") is True if asked.stream is None else asked.stream,
        size=len(dumps(body)) if asked.size is None else asked.size, received_ns=now_ns,
        origin=Origin(facts.session.id if in_session else None, facts.run or None, facts.step or None, facts.tags),
        user=_user(facts, body, http=http),
    )


def _user(facts: FactsConfig, body: Mapping[str, Json], *, http: bool) -> str:
    """Who asks: as the header says, else the body of a model call."""
    written = body.get("user")
    return facts.user if facts.user is not None else written if isinstance(written, str) and not http else ""


def _body(facts: FactsConfig) -> dict[str, Json]:
    """The body, with the facts written into it that are else read from it."""
    asked = facts.request
    body = {**asked.body, **(asked.params or {})}
    if asked.max_tokens is not None:
        body.pop("max_completion_tokens", None)
        body["max_tokens"] = asked.max_tokens
    if facts.messages is not None:
        body["messages"] = facts.messages
    if facts.tools_offered is not None:
        body.pop("functions", None)
        body["tools"] = [{"type": "function", "function": {"name": name}} for name in facts.tools_offered]
    if facts.texts is not None:
        key = _TEXT_KEY.get(asked.operation or "", "messages")
        body = {name: value for name, value in body.items() if name not in _TEXTS}
        body[key] = [{"role": "user", "content": text} for text in facts.texts] if key == "messages" else list(facts.texts)
    return body


def _tool(facts: FactsConfig, world: World) -> ToolCall:
    given = facts.tool
    server = given.server if given.server is not None else "http" if given.via == "http" or given.name in world.tools else ""
    noted = given.annotations if given.annotations is not None else world.tools.get(given.name, {})
    return ToolCall("tool_case", given.name, given.args, given.via, server, noted)


def _result(facts: FactsConfig) -> ToolResult:
    content = facts.result
    if "result" not in facts.model_fields_set and facts.result_text is not None:
        content = parsed_result(facts.result_text)
    text = content if isinstance(content, str) else dumps(content).decode()
    return ToolResult(content, text if facts.result_text is None else facts.result_text, facts.tool.released)


def _said(facts: FactsConfig) -> Said:
    given = facts.response
    usage = Usage(given.usage.input_tokens, given.usage.output_tokens) if "usage" in given.model_fields_set else None
    return Said(given.text, given.tool_calls, given.finish_reason, usage)


def _in_session(case: CaseConfig) -> bool:
    return bool(case.facts.session.id) and bool("session" in case.facts.model_fields_set or case.session.called)


def _session(case: CaseConfig, queries: Iterable[SessionQuery], now_ns: int) -> SessionFacts:
    given = case.facts.session
    answers = {query: _answer(query, case.session.called, now_ns) for query in queries}
    return SessionFacts(given.age, given.labels, given.calls, given.spend, answers, given.facts)


def _budgets(given: BudgetFactsConfig) -> BudgetFacts:
    left = given.remaining
    tightest: Level = min(left, key=lambda scope: left[scope]) if left else next(iter(given.spent), "any")

    def of(amounts: ByLevel) -> dict[str, int]:
        told = {"any": amounts[tightest]} if tightest in amounts else {}
        return {**told, **{str(level): nusd for level, nusd in amounts.items()}}

    return BudgetFacts(of(left), of(given.limit), of(given.spent))


def _answer(query: SessionQuery, called: Sequence[UseConfig], now_ns: int) -> Any:
    """What the store would say, had it these uses on record."""
    uses = sorted((use for use in called if use.tool == query.tool and (query.within_s is None or use.ago <= query.within_s)),
                  key=lambda use: use.ago)
    match query.function:
        case "called":
            return bool(uses)
        case "count":
            return len(uses)
        case "sum":
            return total(query.path, (json_text(use.args) for use in uses))
        case "last":
            return last_use(json_text(uses[0].args), uses[0].result, now_ns - round(uses[0].ago * 1e9)) if uses else None
        case _:
            assert_never(query.function)
