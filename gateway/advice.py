"""What works and is most likely not what was meant. Tells people; decides nothing, and runs only where somebody looks."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final
from urllib.parse import urlsplit

from gateway.config import Deployment
from gateway.core.accounts import UNDER_KEY
from gateway.core.decision import Approval
from gateway.core.lint import Reach, beside
from gateway.core.rules import Rule, match_of
from gateway.errors import Problem
from gateway.rule_config import RuleConfig
from gateway.snapshot import Snapshot
from gateway.toml_source import KeyPath
from gateway.validation import nearest

_SUBJECTS: Final[Mapping[str, str]] = {"all": "subject (it is `all`)", "route": "route", "tool": "tool"}


def advice(deployment: Deployment, snapshot: Snapshot) -> list[Problem]:
    """Files that nobody reads, rules that see or say less than they seem to, providers whose address lacks something."""
    found = [Problem(name, None, "", "is not read", "only files named *.toml are, and no folders") for name in deployment.unread]
    found += _of_engine(deployment, snapshot)
    for given, rule in zip(deployment.rules, snapshot.bundle.rules, strict=True):
        found += _of_words(deployment, given)
        found += _of_condition(deployment, given, rule)
        found += _of_reach(deployment, given, rule)
        found += _of_quorum(deployment, given, rule)
        found += (deployment.problem_in(given.source, ("match", "routes"), f'no route is named {glob!r} (rule "{given.id}")',
                                        nearest(glob, snapshot.routes))
                  for glob in given.match.routes if not any(fnmatchcase(route, glob) for route in snapshot.routes))
        other = given.route.to if given.route is not None else None
        if other is not None and other not in snapshot.routes:
            found.append(deployment.problem_in(
                given.source, ("route", "to"), f'no route is named {other!r}, so what it matches is refused (rule "{given.id}")',
                nearest(other, snapshot.routes)))
    found += _of_neighbours(deployment, deployment.rules)
    found += _of_asking(deployment, snapshot)
    found += _of_budgets(deployment, snapshot)
    found += _of_lengths(deployment, snapshot)
    for name, provider in deployment.config.providers.items():
        if not urlsplit(provider.base_url).path:
            found.append(deployment.problem(("providers", name, "base_url"), "has no path", "most providers need /v1"))
    return found


def _of_engine(deployment: Deployment, snapshot: Snapshot) -> Iterator[Problem]:
    name = snapshot.bundle.phases["request"].engine.name
    if name == "cel-python":
        yield deployment.problem(("policy", "engine"), f"{name} knows no types, so expressions are checked less than they could be",
                                 "cel-expr-python checks types, optional fields and costs")


def _of_words(deployment: Deployment, rule: RuleConfig) -> Iterator[Problem]:
    """What a rule says in vain, or does not say."""
    if rule.effect == "deny" and rule.message is None:
        yield deployment.problem_in(rule.source, ("effect",), f'callers are not told why (rule "{rule.id}")', "add a `message`")
    vain: Sequence[str] = ("message", "remedy") if rule.effect == "log" else ("label",)
    for key in vain:
        if getattr(rule, key) is not None:
            yield deployment.problem_in(rule.source, (key,), f'a rule that is `{rule.effect}` does not use it (rule "{rule.id}")',
                                        "take it out")


def _of_condition(deployment: Deployment, given: RuleConfig, rule: Rule) -> Iterator[Problem]:
    """What was seen in its expression."""
    for problem in rule.program.warnings if rule.program else ():
        yield deployment.problem_in(given.source, ("when",), f'{problem.pointed(given.when or "")} (rule "{given.id}")', problem.hint)


def _of_reach(deployment: Deployment, given: RuleConfig, rule: Rule) -> Iterator[Problem]:
    """A rule against what is written in `messages` is no rule against the same words in a `prompt`."""
    messages = "messages" in rule.reads or ("request.body" in rule.reads and "messages" in (given.when or ""))
    if given.effect == "deny" and messages and not rule.reads & {"request.operation", "texts"}:
        yield deployment.problem_in(given.source, ("when",), f'does not see `prompt` of completions (rule "{given.id}")', "read `texts`")


def _of_quorum(deployment: Deployment, given: RuleConfig, rule: Rule) -> Iterator[Problem]:
    """More votes than there are people who are named for them."""
    demand = rule.action.demand if isinstance(rule.action, Approval) else None
    for number, stage in enumerate(demand.stages if demand is not None else ()):
        named = {text for text in stage.approvers if text.startswith("person:")}
        if len(named) == len(set(stage.approvers)) and 0 < len(named) < stage.quorum:
            path: KeyPath = ("approval", "stages", number, "quorum") if given.approval.stages else ("quorum",)
            yield deployment.problem_in(
                given.source, path, f'nobody can ever approve: {stage.quorum} have to, and {len(named)} may (rule "{given.id}")',
                "name more people, a role or a team in `approvers`")


def _of_asking(deployment: Deployment, snapshot: Snapshot) -> Iterator[Problem]:
    """To ask people is not to allow: HTTP tools whose calls are refused before anybody is asked."""
    if snapshot.bundle.defaults.tools == "allow":
        return
    rules = [rule for rule in deployment.rules if rule.phase == "tool_call" and rule.mode == "enforce"]
    for tool in snapshot.tools:
        meeting = [rule for rule in rules if not rule.match.tools or any(fnmatchcase(tool, glob) for glob in rule.match.tools)]
        asking = next((rule for rule in meeting if rule.effect == "require_approval"), None)
        if asking is not None and not any(rule.effect == "allow" for rule in meeting):
            yield deployment.problem_in(
                asking.source, ("effect",), f"no rule allows {tool}, so its calls are refused and nobody is asked "
                f'(rule "{asking.id}")', 'to ask people is not to allow: add a rule with effect = "allow" for it')


def _of_neighbours(deployment: Deployment, rules: Sequence[RuleConfig]) -> Iterator[Problem]:
    """Rules that other rules leave nothing to do."""
    reaches = [Reach(rule.id, rule.phase, rule.effect, rule.mode, match_of(rule), rule.when) for rule in rules]
    for number, message, hint in beside(reaches):
        yield deployment.problem_in(rules[number].source, ("effect",), f'{message} (rule "{rules[number].id}")', hint)


def _of_budgets(deployment: Deployment, snapshot: Snapshot) -> Iterator[Problem]:
    """Budgets that bind nobody, and settings of theirs that say nothing."""
    names: Mapping[str, Collection[str]] = {
        "all": ("all",), "route": snapshot.models.keys(), "tool": snapshot.tools.keys()}
    for name, given in deployment.config.budgets.items():
        known = names.get(given.scope)
        if known is not None and not any(fnmatchcase(each, glob) for each in known for glob in given.of):
            yield deployment.problem(("budgets", name, "of"), f"there is no such {_SUBJECTS[given.scope]}, so the budget binds nothing",
                                     nearest(given.of[0], known))
        for subject in given.limits:
            shown = (subject, subject.partition("/")[2]) if given.scope in UNDER_KEY else (subject,)
            if not any(fnmatchcase(each, glob) for each in shown for glob in given.of):
                yield deployment.problem(("budgets", name, "limits", subject), "`of` leaves it out, so this limit is never used")
        if given.timezone != "UTC" and snapshot.budgets.budgets[name].window.kind in {"none", "rolling"}:
            yield deployment.problem(("budgets", name, "timezone"), f'a window of "{given.window}" is the same in every time zone',
                                     "take it out, or take a calendar window")


def _of_lengths(deployment: Deployment, snapshot: Snapshot) -> Iterator[Problem]:
    """Where budgets bind, a model that takes no limit holds back money for the longest answer that there is."""
    if not snapshot.budgets.budgets:
        return
    for target in {to.target: None for route in snapshot.routes.values() for to in route.targets
                   if to.bounds.max_output is None and not to.bounds.output_limit}:
        path = ("models", str(target), "output_limit") if str(target) in deployment.config.models else (
            "providers", target.provider, "output_limit")
        yield deployment.problem(path, f"nobody knows how long an answer of {target} may be, so that much is set aside for each call",
                                 f'give `max_output` in [models."{target}"]')
