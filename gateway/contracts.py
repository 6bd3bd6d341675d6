"""Effect contracts: what a tool's declaration says about finding out what came of a call, put together with the tool that is asked."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from gateway.config import Deployment
from gateway.core.expressions import Library
from gateway.core.verify import Verify, compile_verify, open_engines
from gateway.errors import Problem
from gateway.toml_source import KeyPath
from gateway.tool_config import VerifyConfig
from gateway.tools import Tool
from gateway.validation import nearest

Wrong = tuple[KeyPath, str, str | None]


def with_contracts(given: Deployment, tools: Mapping[str, Tool], library: Library | None) -> tuple[dict[str, Tool], list[Problem]]:
    """The tools, each that has a `verify` with what it means; and what is wrong with those."""
    made = dict(tools)
    declared = [(each, each.verify) for each in given.tools if each.verify is not None]
    if not declared or library is None:
        return made, []
    try:
        engines = open_engines(given.config.policy.engine, library)
    except ImportError:  # the rules of policies tell that
        return made, []
    problems: list[Problem] = []
    for tool, verify in declared:
        wrong = list(_of_read(verify, tools, given))
        compiled = compile_verify(verify, engines)
        if isinstance(compiled, Verify):
            made |= {tool.name: replace(tools[tool.name], verify=compiled)} if tool.name in tools else {}
        else:
            wrong += [(path, problem.pointed(source), problem.hint) for path, problem, source in compiled]
        problems += [given.problem_in(tool.source, ("verify", *path), message, hint) for path, message, hint in wrong]
    return made, problems


def _of_read(verify: VerifyConfig, tools: Mapping[str, Tool], given: Deployment) -> Iterator[Wrong]:
    """What is wrong with the tool that is asked, as far as that is known."""
    asked = tools.get(verify.tool)
    if asked is None:
        if verify.tool not in {each.name for each in given.tools}:  # one that is wrong itself is told elsewhere
            yield ("tool",), f"there is no tool {verify.tool!r}", nearest(verify.tool, tools)
        return
    if asked.effect != "read":
        yield ("tool",), f"{asked.name} does more than read: its effect is {asked.effect!r}", 'name a tool with effect = "read"'
    known = asked.parameters["properties"]
    for name in verify.arguments:
        if name not in known and asked.parameters.get("additionalProperties") is False:
            yield ("arguments", name), f"{asked.name} has no argument {name!r}", nearest(name, known)
    for name in asked.parameters.get("required", ()):
        if name not in verify.arguments:
            yield ("arguments",), f"{asked.name} requires the argument {name!r}", f'write {name} = "arguments.…" or "key"'
