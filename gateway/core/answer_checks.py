"""What a route asks of an answer: validators, and with a cascade whether it is good enough. Pure.

Every choice of an answer is looked at by itself, and all of them have to pass. The text of a choice is what a client reads of it: its
`content`, or `text` of completions. What is about a text (`json_schema`, `matches`) is not asked of a choice that has none and calls tools.
An expression that cannot be evaluated is not passed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import orjson

from gateway.call import Json, JsonObject, Reply, Usage
from gateway.core.expressions import Engine, ExpressionError, Library, Program, attempt, compile_expression, evaluate, open_engine
from gateway.core.facts import CelType
from gateway.core.patterns import Letters, Pattern
from gateway.core.program import CompileProblem

VALID: Final = "answer.valid"
NOT_ACCEPTED: Final = "not_accepted"  # the cause of an attempt whose answer a cascade goes on from
_USAGE: Final = "response.usage"
_LARGEST_LOG: Final = 1e6


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice of an answer. `tool_calls` are the names of the tools that it calls; `says` whether there is anything in it at all.

    `logprob` is the mean log-probability of its tokens, 0.0 where it has none.
    """

    text: str = ""
    tool_calls: tuple[str, ...] = ()
    finish_reason: str = ""
    logprob: float = 0.0
    says: bool = False
    usage: Usage | None = None
    target: str = ""

    @property
    def textless(self) -> bool:
        """Whether it calls tools and says nothing beside."""
        return bool(self.tool_calls) and not self.text.strip()

    def parsed(self) -> Json:
        """Its text as JSON. Raises `ValueError`."""
        return orjson.loads(self.text)


@dataclass(frozen=True, slots=True)
class AnswerFact:
    """A variable of expressions over an answer. `extract` gives None where the answer does not have it."""

    name: str
    type: CelType | str
    doc: str
    extract: Callable[[Choice], Any]


def _is_json(choice: Choice) -> bool:
    try:
        choice.parsed()
    except ValueError:
        return False
    return True


def _usage(choice: Choice) -> dict[str, int] | None:
    usage = choice.usage
    return None if usage is None else {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}


ANSWER_FACTS: Final[tuple[AnswerFact, ...]] = (
    AnswerFact("response.text", "string", "The text of the choice.", lambda choice: choice.text),
    AnswerFact("response.tool_calls", "list(string)", "The names of the tools that it calls.", lambda choice: list(choice.tool_calls)),
    AnswerFact("response.finish_reason", "string", "Why it ended, empty if it does not say.", lambda choice: choice.finish_reason),
    AnswerFact(_USAGE, "map(string, dyn)", "`input_tokens` and `output_tokens` of the whole answer; not passed where the provider did not "
               "say.", _usage),
    AnswerFact("answer.json", "bool", "Whether its text is JSON.", _is_json),
    AnswerFact("answer.length", "int", "The characters of its text.", lambda choice: len(choice.text)),
    AnswerFact("answer.logprob", "double", "The mean log-probability of its tokens; 0.0 where the answer has none, which `< 0.0` tells.",
               lambda choice: choice.logprob),
    AnswerFact("target", "string", "Who gave it: `PROVIDER/MODEL`.", lambda choice: choice.target),
    AnswerFact(VALID, "bool", "Whether it passes the route's validators; in `accept` only.", lambda _: None),
)


def answer_table() -> str:
    """The variables as the Markdown table of the guide."""
    rows = [f"| `{fact.name}` | `{fact.type}` | {fact.doc} |" for fact in ANSWER_FACTS]
    return "\n".join(["| variable | type | what |", "|---|---|---|", *rows])


Passes: TypeAlias = Callable[[Choice], bool]


@dataclass(frozen=True, slots=True)
class Check:
    """A validator. `name` is what an attempt that fails it has as its cause; `why` says what is wrong with a choice that does not pass,
    without a word of it.
    """

    name: str
    passes: Passes = field(repr=False)
    why: Callable[[Choice], str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class AnswerChecks:
    """The validators of a route, in order, and what makes an answer good enough; None: any is."""

    validators: tuple[Check, ...] = ()
    accept: "Acceptance | None" = None

    def fault(self, reply: Reply, target: str, *, accepting: bool) -> str | None:
        """What is wrong with an answer of `target` ("PROVIDER/MODEL"): the name of the first validator that it does not pass, or
        `NOT_ACCEPTED`; None where it may be given. `accepting`: there is another target to ask where it is not good enough.

        What is not accepted is not tried again where it came from, whatever validators say of it.
        """
        choices = choices_of(reply, target)
        failed = next((check.name for check in self.validators if not all(map(check.passes, choices))), None)
        if accepting and self.accept is not None and not all(self.accept.holds(choice, failed is None) for choice in choices):
            return NOT_ACCEPTED
        return failed

    def why(self, reply: Reply, target: str, fault: str) -> str:
        """What is wrong with an answer that has this fault, for people."""
        if fault == NOT_ACCEPTED:
            return f"`{self.accept.source}` does not hold" if self.accept is not None else ""
        check = next(check for check in self.validators if check.name == fault)
        return next((check.why(choice) for choice in choices_of(reply, target) if not check.passes(choice)), "")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What makes an answer good enough. `holds` is told whether the validators pass."""

    source: str
    holds: Callable[[Choice, bool], bool] = field(repr=False)


def choices_of(reply: Reply, target: str) -> list[Choice]:
    """The choices of an answer; of one that has none, an empty one, which passes next to nothing."""
    held = reply.body.get("choices")
    found = [_choice(each, reply.usage, target) for each in (held if isinstance(held, list) else ()) if isinstance(each, Mapping)]
    return found or [Choice(usage=reply.usage, target=target)]


# Making checks.


def answer_engine(choice: str, library: Library) -> Engine:
    """What expressions over answers are compiled with. Raises `ImportError` as `open_engine` does."""
    return open_engine(choice, {fact.name: fact.type for fact in ANSWER_FACTS}, library)


def non_empty() -> Check:
    """It says something, or calls a tool."""
    return Check("check:non_empty", lambda choice: choice.says, lambda _: "it says nothing")


def fits_schema(fault: Callable[[Json], str]) -> Check:
    """Its text is JSON in which there is no `fault`: the first one in words, empty where there is none."""
    def why(choice: Choice) -> str:
        try:
            return fault(choice.parsed())
        except ValueError:
            return "it is not JSON"

    return Check("check:json_schema", lambda choice: choice.textless or not why(choice), why)


def matches(source: str) -> Check:
    """Its text matches a pattern somewhere. Raises `PatternError`."""
    pattern = Pattern(source)
    return Check("check:matches", lambda choice: choice.textless or pattern.search(Letters(choice.text).data, 0) is not None,
                 lambda _: f"it does not match `{source}`")


def finish_reasons(allowed: frozenset[str]) -> Check:
    """It ended for one of these reasons."""
    return Check("check:finish_reasons", lambda choice: choice.finish_reason in allowed,
                 lambda _: f"it ended for another reason than {', '.join(sorted(allowed))}")


def holds(engine: Engine, source: str) -> Check:
    """A validator that is an expression. Raises `ExpressionError`."""
    program = compile_expression(engine, source)
    if VALID in program.names:
        raise ExpressionError(CompileProblem(f"`{VALID}` says whether validators are passed, so none of them can ask for it"))
    return Check("check:expression", lambda choice: _true(engine, program, choice, valid=True), lambda _: f"`{source}` does not hold")


def acceptance(engine: Engine, source: str) -> Acceptance:
    """What makes an answer good enough: an expression. Raises `ExpressionError`."""
    program = compile_expression(engine, source)
    return Acceptance(source, lambda choice, valid: _true(engine, program, choice, valid=valid))


def _true(engine: Engine, program: Program, choice: Choice, *, valid: bool) -> bool:
    values = {fact.name: fact.extract(choice) for fact in ANSWER_FACTS if fact.name in program.names}
    if VALID in values:
        values[VALID] = valid
    if any(value is None for value in values.values()):
        return False
    return evaluate(program, attempt(lambda given: engine.activation(given, {}), values)) is True


# Reading answers.


def _choice(held: Mapping[str, Json], usage: Usage | None, target: str) -> Choice:
    message = held.get("message")
    if not isinstance(message, Mapping):
        text = held.get("text")
        message = {"content": text if isinstance(text, str) else None}
    text = "".join(_texts(message.get("content")))
    calls = tuple(_called(message))
    says = bool(calls or text.strip() or message.get("refusal") or message.get("audio"))
    reason = held.get("finish_reason")
    return Choice(text, calls, reason if isinstance(reason, str) else "", _logprob(held.get("logprobs")), says, usage, target)


def _texts(content: Json) -> Iterator[str]:
    """A content: a text, or parts."""
    for part in content if isinstance(content, list) else [content]:
        text = part.get("text") if isinstance(part, Mapping) else part
        if isinstance(text, str):
            yield text


def _called(message: JsonObject) -> Iterator[str]:
    """The names of the tools that a message calls, in today's form and in the older one."""
    entries = message.get("tool_calls")
    for entry in [*(entries if isinstance(entries, list) else []), message.get("function_call")]:
        if isinstance(entry, Mapping):
            inner = next((entry[kind] for kind in ("function", "custom") if isinstance(entry.get(kind), Mapping)), entry)
            name = inner.get("name")
            yield name if isinstance(name, str) else ""


def _logprob(logprobs: Json) -> float:
    held = logprobs if isinstance(logprobs, Mapping) else {}
    content, older = held.get("content"), held.get("token_logprobs")
    found = [each.get("logprob") for each in content if isinstance(each, Mapping)] if isinstance(content, list) else older
    numbers = [float(each) for each in (found if isinstance(found, list) else ())
               if isinstance(each, int | float) and not isinstance(each, bool) and abs(each) < _LARGEST_LOG]  # infinite, or no number: none
    return sum(numbers) / len(numbers) if numbers else 0.0
