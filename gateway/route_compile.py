"""Routes and tools as they are configured become `Route`s: names resolved, expressions compiled, contradictions told."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

from gateway.call import Target
from gateway.config import Deployment
from gateway.core.answer_checks import (
    AnswerChecks,
    Check,
    acceptance,
    answer_engine,
    finish_reasons,
    fits_schema,
    holds,
    matches,
    non_empty,
)
from gateway.core.breaker import BreakerRules
from gateway.core.estimate import OUTPUT_LIMITS
from gateway.core.expressions import Engine, ExpressionError, Library
from gateway.core.money import Price
from gateway.core.patterns import PatternError
from gateway.core.plan import Classifier, Deadlines, Hedge, Mirror, Retry, Route, RouteTarget
from gateway.core.route_rules import RouteRule, RouteRules, compile_rule, route_engine, route_rules
from gateway.errors import Problem
from gateway.prices import CONFIGURED, priced_target
from gateway.resilience_config import BreakerConfig, HedgeConfig
from gateway.route_config import CheckConfig, ClassifierConfig, MirrorConfig, RouteConfig, TargetConfig
from gateway.schemas import compile_schema
from gateway.toml_source import KeyPath
from gateway.tool_config import ToolConfig
from gateway.tools import OPERATION
from gateway.validation import nearest

Made = TypeVar("Made")
Wrong: TypeAlias = tuple[KeyPath, str, str]  # the key at fault, what is wrong there, what to do
_Opened: TypeAlias = Callable[[str, Library], Engine]

_ASKED_OF: Final = "chat"  # how a classifier is asked
# What of a body rules have judged, or money bounds; the rest of a half answer is asked for with other fields.
_NOT_TO_ADD: Final = frozenset({
    "messages", "prompt", "model", "stream", "stream_options", "n", "best_of", "tools", "functions", *OUTPUT_LIMITS})
_WITHOUT_WORDS: Final = frozenset({"embeddings"})


class RouteCompilation:
    """Compiles all routes of a deployment. `operations` are what each provider's adapter can do, `library` what expressions look into.

    `problems` is what was found wrong, `named` every name of a route with the `source` of who has it first.
    """

    def __init__(self, deployment: Deployment, operations: Mapping[str, frozenset[str]], library: Library | None, now_ns: int) -> None:
        self.problems: list[Problem] = []
        self.named: dict[str, str] = {}
        self._deployment = deployment
        self._config = deployment.config
        self._operations = operations
        self._library = library
        self._now_ns = now_ns
        self._engines: dict[_Opened, Engine | None] = {}
        general = self._config.breaker
        tables: dict[KeyPath, BreakerConfig] = {("breaker",): general}
        tables |= {("providers", name, "breaker"): each.breaker for name, each in self._config.providers.items()}
        for path, own in tables.items():
            self.problems += [deployment.problem((*path, *key), *told) for key, *told in _wrong_breaker(general, own)]

    def routes(self) -> dict[str, Route]:
        """Every route, by its name and by each of its aliases."""
        first: list[RouteConfig] = []
        for given in self._deployment.routes:
            if given.name in self.named:
                self._wrong(given, ("name",), f"the route {given.name!r} is defined twice", f"first at {self.named[given.name]}")
                continue
            self.named[given.name] = given.source
            first.append(given)
        made: dict[str, Route] = {}
        for given in first:
            route = made[given.name] = self._route(given)
            for number, alias in enumerate(given.aliases):
                if alias in self.named:
                    self._wrong(given, ("aliases", number), f"the name {alias!r} is taken", f"first at {self.named[alias]}")
                    continue
                self.named[alias] = given.source
                made[alias] = route
        return made

    def tool(self, given: ToolConfig, target: Target) -> Route:
        """A tool as a route with one target. A call that must not be made twice is tried once; only what reads is made twice at a time."""
        deadlines, retry = given.deadlines, given.retry
        where = given.source
        self.problems += [self._deployment.problem_in(where, ("breaker", *key), *told)
                          for key, *told in _wrong_breaker(self._config.breaker, given.breaker)]
        if given.hedge.after and given.effect != "read":
            self.problems.append(self._deployment.problem_in(
                where, ("hedge", "after"), f'a call that is "{given.effect}" is not made twice at a time',
                'say effect = "read" if it changes nothing, or take `hedge` out'))
        to = RouteTarget(target, Price(0, 0, request=given.price), prices=CONFIGURED,
                         breaker=breaker_rules(self._config.breaker, given.breaker))
        return Route(
            given.name, frozenset({OPERATION}), (to,),
            Deadlines(deadlines.connect, deadlines.headers, deadlines.headers, deadlines.headers, deadlines.total),
            Retry(1 if given.effect == "at_most_once" else retry.attempts, retry.base, retry.cap, retry.budget.share,
                  retry.budget.per_second),
            hedge=_hedge(given.hedge))

    def _route(self, given: RouteConfig) -> Route:
        self._check_canaries(given)
        self._check_settings(given)
        deadlines, retry = given.deadlines, given.retry
        return Route(
            given.name, self._possible(given), self._targets(given),
            Deadlines(deadlines.connect, deadlines.headers, deadlines.first_token, deadlines.idle, deadlines.total),
            Retry(retry.attempts, retry.base, retry.cap, retry.budget.share, retry.budget.per_second),
            strategy=given.strategy, aliases=given.aliases, rules=(rules := self._rules(given)),
            classifier=self._classifier(given, given.classifier, rules) if given.classifier is not None else None,
            mirrors=self._mirrors(given), checks=self._checks(given), approve=given.on_exhausted == "approve", hedge=_hedge(given.hedge),
            continues=given.stream.on_failure == "continue", early_s=given.stream.early)

    # Where calls go.

    def _to(self, given: RouteConfig, path: KeyPath, provider: str, model: str) -> RouteTarget | None:
        """A target; None where there is no such provider."""
        known = self._config.providers.get(provider)
        if known is None:
            self._wrong(given, (*path, "provider"), f"there is no provider {provider!r}", nearest(provider, self._config.providers))
            return None
        made = priced_target(Target(provider, model), self._config, self._now_ns)
        return replace(made, breaker=breaker_rules(self._config.breaker, known.breaker))

    def _targets(self, given: RouteConfig) -> tuple[RouteTarget, ...]:
        made: list[RouteTarget] = []
        taken = 0.0
        for number, each in enumerate(given.targets):
            to = self._to(given, ("targets", number), each.provider, each.model)
            if each.continue_with and not each.continues:
                self._wrong(given, ("targets", number, "continue_with"), "the target is not said to go on with half an answer",
                            "say `continues = true`, or take it out")
            if to is not None:
                made.append(replace(to, weight=each.weight, canary=each.canary, canary_from=taken if each.canary is not None else 0.0,
                                    continues=MappingProxyType(dict(each.continue_with)) if each.continues else None))
            taken += each.canary or 0.0
            if _name(each) in map(_name, given.targets[:number]):
                self._wrong(given, ("targets", number), f"{_name(each)} is a target of this route already", "`retry` tries one again")
        return tuple(made)

    def _check_canaries(self, given: RouteConfig) -> None:
        canaries = [each.canary for each in given.targets if each.canary is not None]
        if canaries and len(canaries) == len(given.targets):
            self._wrong(given, ("targets", 0, "canary"), "every target is a canary, so some calls have nowhere to go",
                        "take `canary` from the one that the others are compared with")
        if sum(canaries) > 100.0001:  # thirds of a hundred add up to a little more
            self._wrong(given, ("targets",), f"the canaries take {sum(canaries):g} % of the calls together", "100 is all there is")

    def _check_settings(self, given: RouteConfig) -> None:
        """What contradicts itself."""
        if given.stream.on_failure == "continue" and not any(each.continues for each in given.targets):
            self._wrong(given, ("stream", "on_failure"), "no target goes on with a stream that broke off",
                        "say `continues = true` for one that can")
        if given.stream.on_failure == "continue" and (given.validators or given.accept is not None):
            self._wrong(given, ("stream", "on_failure"), "answers that are looked at as a whole are held, so none is gone on with",
                        "take it out, or what has them held: `validators`, `accept`")
        if given.hedge.after and not given.hedge.share:
            self._wrong(given, ("hedge", "share"), "none of the calls may have a second attempt", 'say so with `after = "0s"`')
        self._check_copies(given)
        if given.accept is not None and len(given.targets) < 2:
            self._wrong(given, ("accept",), "there is one target, so there is no next one to ask", "name another target")
        if given.on_exhausted == "approve" and not given.validators:
            self._wrong(given, ("on_exhausted",), "there are no validators that an answer could fail", "add them, or take it out")

    def _check_copies(self, given: RouteConfig) -> None:
        """What would be said, or sent, once more than anybody wants."""
        for number, each in enumerate(given.targets):
            taken = sorted(_NOT_TO_ADD.intersection(each.continue_with))
            if taken:
                at: KeyPath = ("targets", number, "continue_with", taken[0])
                self._wrong(given, at, "is the caller's to say, or the gateway's", "take it out")
        copies = [_name(each) for each in given.mirrors]
        for number, name in enumerate(copies):
            if name in map(_name, given.targets) or name in copies[:number]:
                self._wrong(given, ("mirrors", number), f"{name} gets the call already", "mirror to another target")

    def _mirrors(self, given: RouteConfig) -> tuple[Mirror, ...]:
        found = [(each, self._to(given, ("mirrors", number), each.provider, each.model)) for number, each in enumerate(given.mirrors)]
        return tuple(Mirror(to, each.percent) for each, to in found if to is not None)

    def _possible(self, given: RouteConfig) -> frozenset[str]:
        """What every target and mirror can do. What a route promises by itself and one cannot do is a problem, or a fallback would fail."""
        providers = [*(each.provider for each in given.targets), *(each.provider for each in given.mirrors)]
        able = [self._operations[name] for name in providers if name in self._operations]
        asked = frozenset(given.operations)
        possible = asked.intersection(*able)
        promised = asked if "operations" in given.model_fields_set else frozenset[str]()
        if not possible or promised - possible:
            lacking = ", ".join(sorted(promised - possible or asked))
            self._wrong(given, ("operations",), f"not every target's adapter can do this: {lacking}",
                        "name what all of them can do, or give the target a route of its own")
        if not (given.validators or given.accept):
            return possible
        if promised & _WITHOUT_WORDS or not possible - _WITHOUT_WORDS:
            self._wrong(given, ("operations",), "vectors have no words that validators or `accept` could look at",
                        "give embeddings a route of their own")
        return possible - _WITHOUT_WORDS

    # Expressions.

    def _rules(self, given: RouteConfig) -> RouteRules | None:
        made: list[RouteRule] = []
        for number, rule in enumerate(given.rules):
            at: KeyPath = ("rules", number)
            for place, glob in enumerate(rule.targets):
                if not any(fnmatchcase(_name(each), glob) for each in given.targets):
                    self._wrong(given, (*at, "targets", place), f"no target of this route fits {glob!r}",
                                nearest(glob, map(_name, given.targets)))
            chosen = [each for each in given.targets if any(fnmatchcase(_name(each), glob) for glob in rule.targets)]
            if chosen and all(each.canary is not None for each in chosen):
                self._wrong(given, (*at, "targets"), "all of them are canaries, so some calls have nowhere to go", "name another one, too")
            compiled = self._compiled(given, (*at, "when"), rule.when, route_engine, partial(compile_rule, targets=rule.targets))
            made += [compiled] if compiled is not None else []
        engine = self._engine(route_engine)
        return route_rules(engine, made) if engine is not None and made else None

    def _classifier(self, given: RouteConfig, asked: ClassifierConfig, rules: RouteRules | None) -> Classifier | None:
        at: KeyPath = ("classifier",)
        to = self._to(given, at, asked.provider, asked.model)
        if to is None:
            return None
        if _ASKED_OF not in self._operations.get(asked.provider, {_ASKED_OF}):
            self._wrong(given, (*at, "provider"), f"its adapter cannot do this: {_ASKED_OF}", "name another provider")
        if not given.rules or (rules is not None and not rules.reads_task):
            self._wrong(given, at, "no rule of the route reads `task`", "add one to `rules`, or take the classifier out")
        return Classifier(to, asked.tasks, asked.default, asked.instructions, asked.deadline, asked.cache)

    def _checks(self, given: RouteConfig) -> AnswerChecks | None:
        made = [self._check(given, number, each) for number, each in enumerate(given.validators)]
        accept = None
        if given.accept is not None:
            accept = self._compiled(given, ("accept",), given.accept, answer_engine, acceptance)
        checks = tuple(check for check in made if check is not None)
        return AnswerChecks(checks, accept) if checks or accept is not None else None

    def _check(self, given: RouteConfig, number: int, said: CheckConfig) -> Check | None:
        """One validator; None where it is wrong."""
        at: KeyPath = ("validators", number)
        if said.finish_reasons is not None:
            return finish_reasons(frozenset(said.finish_reasons))
        if said.expression is not None:
            return self._compiled(given, (*at, "expression"), said.expression, answer_engine, holds)
        try:
            if said.json_schema is not None:
                schema = compile_schema(said.json_schema)
                return fits_schema(lambda value: next(iter(schema.problems(value)), ""))
            if said.matches is not None:
                return matches(said.matches)
        except ValueError as error:
            key = "matches" if isinstance(error, PatternError) else "json_schema"
            self._wrong(given, (*at, key), str(error))
            return None
        return non_empty()

    def _compiled(
        self, given: RouteConfig, path: KeyPath, source: str, opened: _Opened, compiled: Callable[[Engine, str], Made],
    ) -> Made | None:
        """What becomes of an expression; None where it cannot be used."""
        engine = self._engine(opened)
        if engine is None:
            return None
        try:
            return compiled(engine, source)
        except ExpressionError as error:
            for problem in error.problems:
                self._wrong(given, path, problem.pointed(source), problem.hint)
            return None

    def _engine(self, opened: _Opened) -> Engine | None:
        """The engine for one kind of expression, opened once; None where that cannot be had, which the rules of policies tell."""
        if opened not in self._engines and self._library is not None:
            try:
                self._engines[opened] = opened(self._config.policy.engine, self._library)
            except ImportError:
                self._engines[opened] = None
        return self._engines.get(opened)

    def _wrong(self, given: RouteConfig, path: KeyPath, message: str, hint: str | None = None) -> None:
        self.problems.append(self._deployment.problem_in(given.source, path, message, hint))


def breaker_rules(general: BreakerConfig, own: BreakerConfig) -> BreakerRules:
    """`[breaker]` with the keys that a provider or a tool says otherwise."""
    said = _merged(general, own)
    return BreakerRules(said.enabled, said.window, said.calls, said.failures, said.consecutive, said.slow, said.slow_first_token,
                        said.slow_gap, said.open, said.open_cap, said.probes, said.cool_cap)


def _merged(general: BreakerConfig, own: BreakerConfig) -> BreakerConfig:
    return general.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})


def _wrong_breaker(general: BreakerConfig, own: BreakerConfig) -> Iterator[Wrong]:
    """What contradicts itself in a table of a breaker; where it says nothing, nothing does."""
    said = _merged(general, own)
    if own.model_fields_set & {"open", "open_cap"} and said.open > said.open_cap:
        key = "open_cap" if "open_cap" in own.model_fields_set else "open"
        yield (key,), "a breaker cannot be open longer at first than at the most", "raise `open_cap`, or lower `open`"


def _hedge(given: HedgeConfig) -> Hedge:
    return Hedge(given.after, given.share)


def _name(target: TargetConfig | MirrorConfig) -> str:
    return f"{target.provider}/{target.model}"
