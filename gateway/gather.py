"""Which facts a decision needs, and getting exactly those."""

from collections.abc import Collection
from typing import Any

from gateway.core.body import UnreadableFactError
from gateway.core.facts import TOOLS_FACT, Facts, match_keys
from gateway.core.question import Question
from gateway.core.rules import Bundle, Selection


def gather(bundle: Bundle, question: Question, *, without: Collection[str] = ()) -> Facts:
    """What the rules that could apply read of what is judged; of these facts nothing.

    A fact that is not there in its declared type is noted, not raised: the rules that read it fail closed.
    """
    index = bundle.phases[question.phase].index
    keys = match_keys(question, with_tools=index.reads_tools)
    values: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    for fact in index.select(keys).facts:
        if fact.name in without:
            continue
        try:
            values[fact.name] = fact.read(question)
        except UnreadableFactError as error:
            unreadable[fact.name] = str(error)
    if not index.knows_tools(keys):
        unreadable.setdefault(TOOLS_FACT[question.phase], "too many tools for the globs of the rules on tools")
    session = question.session
    return Facts(keys, values, unreadable, session.answers if session else {}, _allowed(bundle, question),
                 question.tool.name if question.tool else "", question.large)


def selected(bundle: Bundle, question: Question) -> Selection:
    """The rules that could apply: what they ask of the session has to be fetched before `gather`."""
    index = bundle.phases[question.phase].index
    return index.select(match_keys(question, with_tools=index.reads_tools))


def _allowed(bundle: Bundle, question: Question) -> bool:
    """What `[defaults]` says where no rule decides. What comes back of a call that was let through is let through."""
    defaults = bundle.defaults
    if question.phase == "tool_call":
        return (defaults.tools if question.known_tool else defaults.application_tools) == "allow"
    return question.phase != "request" or question.call.operation == "tool" or defaults.models == "allow"
