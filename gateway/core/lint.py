"""What is wrong or deserves a look in an expression, seen on its checked tree, and in rules, seen beside each other.

Errors are few and certain: what could hold a gateway for long. Everything else is a warning, and none is given on suspicion alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import chain
from typing import Final, Literal, TypeAlias

from gateway.core.accounts import SCOPES
from gateway.core.checked_tree import Const, Field, Invoked, Items, Loop, Name, Node, children, walk
from gateway.core.decision import Phase
from gateway.core.facts import BUDGET_FACTS, FACTS, facts_of
from gateway.core.program import CompileProblem

MAX_NODES: Final = 500
MAX_NESTED: Final = 2
MAX_JOINED: Final = 8  # `+` in one expression, where one of its texts is as long as a caller likes: each makes a copy

# Facts as long as a caller likes.
_UNBOUNDED: Final = frozenset({
    "messages", "texts", "tools_offered", "request.body", "request.params", "tool.args", "result", "result_text", "response.text",
    "response.tool_calls", "approval.args"})
# Facts whose fields a caller, a tool or the operator may leave out; of the first few a key is a name that stands in quotes.
_GUARDED_BY_IN: Final = BUDGET_FACTS | {"tags", "env", "session.facts"}
_MAY_LACK: Final = _GUARDED_BY_IN | {"request.body", "request.params", "tool.args", "tool.annotations", "result", "approval.args"}
_LEVELS: Final = ("any", *SCOPES)  # what maps of budgets may hold
# What reads all of its first operand: done for each item of a list, it takes time by the square.
_READS_ALL: Final = frozenset({
    "charAt", "contains", "endsWith", "format", "glob", "in_list", "indexOf", "join", "lastIndexOf", "lowerAscii", "matches", "pii",
    "replace", "reverse", "secrets", "sha256", "size", "split", "string", "substring", "trim", "upperAscii"})
_MULTIPLY: Final = frozenset({"join", "replace", "format"})  # what they give may be as long as two operands multiplied
_NUMBERS: Final = frozenset({"double", "int", "size", "uint", "-_", "_-_", "_*_", "_/_", "_%_"})  # what gives no text
_LIMITED: Final[Mapping[str, int]] = {"split": 1, "replace": 2}  # what makes something for every finding: where its limit stands
_MOST_MADE: Final = 10_000
_BOTH_LONG: Final = "both are as long as the caller likes"

Path: TypeAlias = tuple[str, ...]


def errors(tree: Node) -> list[CompileProblem]:
    """What an expression may not do, because of what it could cost: too large, nested too deep, one long list within another."""
    size = sum(1 for _ in walk(tree))
    if size > MAX_NODES:
        return [CompileProblem(f"the expression has {size} parts, and {MAX_NODES} is the most", hint="put long lists into policies/lists/")]
    costs = _Costs()
    found = list(dict.fromkeys(costs.of(tree, {}, 0)))
    if costs.joined > MAX_JOINED:
        message = f"joins texts {costs.joined} times where one is as long as the caller likes, and {MAX_JOINED} is the most"
        found.append(CompileProblem(message, *tree.place, "ask about each text by itself"))
    return found


def warnings(tree: Node) -> list[CompileProblem]:
    """What works and is most likely not what was meant."""
    constant = truth(tree)
    if constant is not None:
        return [CompileProblem(f"this is always {str(constant).lower()}", *tree.place)]
    parts = [part for part in walk(tree) if isinstance(part, Invoked) and part.function in {"_&&_", "_||_"} and truth(part) is not None]
    found = [CompileProblem(f"this part is always {str(truth(part)).lower()}", *part.place) for part in parts]
    found += _no_levels(tree)
    unguarded: dict[str, CompileProblem] = {}
    for problem in _unguarded(tree, frozenset(), frozenset()):
        unguarded.setdefault(problem.message, problem)
    return found + list(unguarded.values())


def by_phase(problem: CompileProblem, phase: Phase) -> CompileProblem:
    """A problem of an undeclared name, said with what is known of other phases."""
    if not problem.undeclared or problem.hint:
        return problem
    phases = {fact.name: fact.phases for fact in FACTS}
    parts = problem.undeclared.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    known = next((prefix for prefix in prefixes if prefix in phases), None)
    if known is not None:
        where = f"`{known}` exists in phase {' and '.join(phases[known])}, not in {phase}"
        return replace(problem, message=where, hint=f'set phase = "{phases[known][0]}"')
    elsewhere = phases.keys() - facts_of(phase).keys()
    near = get_close_matches(problem.undeclared, sorted(elsewhere), 1)
    return replace(problem, hint=f"did you mean {near[0]!r} of phase {phases[near[0]][0]}?") if near else problem


class _Costs:
    """Comprehensions: how deep they are nested, and what is read again for every item of a list that a caller makes as long as he likes."""

    def __init__(self) -> None:
        self.joined = 0

    def of(self, node: Node, bound: Mapping[str, str | None], nested: int) -> Iterator[CompileProblem]:
        """`bound` has the variables of the comprehensions around, inner ones last, each with the unbounded fact of its items."""
        if isinstance(node, Loop):
            yield from self._loop(node, bound, nested)
            return
        around = next((fact for fact in bound.values() if fact), None)
        if isinstance(node, Invoked):
            read = [fact for fact in map(_root, _read_whole(node)) if fact in _UNBOUNDED and fact not in bound]
            if read and around:
                yield CompileProblem(f"`{read[0]}` is read whole for every item of `{around}`", *node.place, _BOTH_LONG)
            long = [fact for fact in map(_root, children(node)) if fact in _UNBOUNDED or bound.get(fact)]
            if node.function in _LIMITED and node.target is not None and long and not _is_limited(node):
                limit = ", ".join(['" "', '"_"'][:_LIMITED[node.function]])
                yield CompileProblem(f"`{node.function}` may find as much as the caller likes", *node.place,
                                     f"give it a limit, {_MOST_MADE} at most: {node.function}({limit}, 100)")
            joined = [fact for fact in map(_root, _texts_joined(node)) if fact in _UNBOUNDED or bound.get(fact)]
            if joined:
                self.joined += 1
                if bound and any(fact != list(bound)[-1] for fact in joined):
                    yield CompileProblem(f"`{joined[0]}` is copied for every item of the list around", *node.place, "join outside of it")
            if node.function in _MULTIPLY and len(long) > 1:
                yield CompileProblem(f"what `{node.function}` gives here may be as long as its two parts multiplied", *node.place)
        yield from chain.from_iterable(self.of(child, bound, nested) for child in children(node))

    def _loop(self, loop: Loop, bound: Mapping[str, str | None], nested: int) -> Iterator[CompileProblem]:
        if nested == MAX_NESTED:
            yield CompileProblem(f"comprehensions are nested deeper than {MAX_NESTED}", *loop.place, "split the rule, or read `texts`")
            return
        root = _root(loop.over)
        around = next((fact for fact in bound.values() if fact), None)
        if root in _UNBOUNDED and root not in bound and around:
            yield CompileProblem(f"goes through `{root}` for every item of `{around}`", *loop.place, _BOTH_LONG)
        yield from self.of(loop.over, bound, nested)
        fact = root if root in _UNBOUNDED else bound.get(root)
        within = {**bound, loop.variable: fact}
        for part in (loop.condition, loop.step):
            yield from self.of(part, within, nested + 1)


def _read_whole(node: Invoked) -> Sequence[Node]:
    """The operands that a function reads to their ends."""
    operands = children(node)
    if node.function == "_+_":
        return operands
    return operands[1:] if node.function == "@in" else operands[:1] if node.function in _READS_ALL else ()


def _is_limited(node: Invoked) -> bool:
    """Whether a `split` or `replace` says how often, in a number that stands in the source."""
    limits = node.arguments[_LIMITED[node.function]:]
    return any(isinstance(each, Const) and each.kind == "int" and isinstance(each.value, int) and 0 <= each.value <= _MOST_MADE
               for each in limits)


def _texts_joined(node: Invoked) -> Sequence[Node]:
    """The operands of a `+` that may be texts."""
    operands = children(node) if node.function == "_+_" else ()
    return [each for each in operands if not (isinstance(each, Invoked) and each.function in _NUMBERS)]


def _root(node: Node) -> str:
    """The variable that a value comes out of, as far as that is one; else an empty text."""
    while not isinstance(node, Name):
        if isinstance(node, Loop):
            node = node.over
        elif isinstance(node, Const | Items) or not children(node):
            return ""
        else:
            node = children(node)[0]
    return node.name.removeprefix(".")


def _path(node: Node) -> Path | None:
    """The fact and the fields of `tool.args.a["b"]`; None for anything else."""
    match node:
        case Name():
            return (node.name.removeprefix("."),)
        case Field():
            path, key = _path(node.of), node.key
        case Invoked(function="_[_]", arguments=(of, Const(kind="string", value=str(key)))):
            path = _path(of)
        case _:
            return None
    return None if path is None else (*path, key)


def _present(node: Node, *, when: bool) -> frozenset[Path]:
    """The fields that are there for certain where `node` is `when`."""
    match node:
        case Field(tested=True):
            path = _path(node)
            return _with_prefixes(path) if when and path else frozenset()
        case Invoked(function="@in", arguments=(Const(kind="string", value=str(key)), of)):
            path = _path(of)
            return _with_prefixes((*path, key)) if when and path else frozenset()
        case Invoked(function="!_", arguments=(of,)):
            return _present(of, when=not when)
        case Invoked(function="_&&_" | "_||_", arguments=(left, right)):
            both = (_present(left, when=when), _present(right, when=when))
            return both[0] | both[1] if (node.function == "_&&_") is when else both[0] & both[1]
        case _:
            return frozenset()


def _with_prefixes(path: Path) -> frozenset[Path]:
    return frozenset(path[:length] for length in range(2, len(path) + 1))


def _unguarded(node: Node, present: frozenset[Path], bound: frozenset[str]) -> Iterator[CompileProblem]:
    """Fields that are read where they may not be there: the shortest path of each."""
    match node:
        case Invoked(function="_&&_" | "_||_" as operator, arguments=(left, right)):
            # Either order will do: CEL lets an error on one side go where the other side decides.
            when = operator == "_&&_"
            yield from _unguarded(left, present | _present(right, when=when), bound)
            yield from _unguarded(right, present | _present(left, when=when), bound)
        case Invoked(function="_?_:_", arguments=(condition, first, second)):
            yield from _unguarded(condition, present, bound)
            yield from _unguarded(first, present | _present(condition, when=True), bound)
            yield from _unguarded(second, present | _present(condition, when=False), bound)
        case Loop():
            yield from _unguarded(node.over, present, bound)
            for part in (node.condition, node.step):
                yield from _unguarded(part, present, bound | {node.variable})
        case _:
            path = _path(node)
            tested = isinstance(node, Field) and node.tested
            if path is None or tested or path[0] in bound:
                yield from chain.from_iterable(_unguarded(child, present, bound) for child in children(node))
            elif path[0] in _MAY_LACK:
                lacking = next((path[:length] for length in range(2, len(path) + 1) if path[:length] not in present), None)
                if lacking:
                    yield _lacking(lacking, node)


def _no_levels(tree: Node) -> Iterator[CompileProblem]:
    """Scopes that no budget can have: a rule that asks for one first never matches, and one that does not ask always fails."""
    for part in walk(tree):
        match part:
            case Invoked(function="@in", arguments=(Const(kind="string", value=str(key)), of)):
                path = (*(_path(of) or ()), key)
            case Field() | Invoked(function="_[_]"):
                path = _path(part) or ()
            case _:
                continue
        if len(path) == 2 and path[0] in BUDGET_FACTS and path[1] not in _LEVELS:
            near = get_close_matches(path[1], _LEVELS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_LEVELS)}"
            yield CompileProblem(f"`{path[0]}` never has {path[1]!r}: it is by scope", *part.place, hint)


def _lacking(path: Path, node: Node) -> CompileProblem:
    start = next(part for part in walk(node) if isinstance(part, Name))
    plain = all(part.isidentifier() for part in path[1:])
    shown = ".".join(path) if plain else "".join((path[0], *(f'["{part}"]' for part in path[1:])))
    guard = f"has({shown})" if plain and path[0] not in _GUARDED_BY_IN else f'"{path[-1]}" in {".".join(path[:-1])}'
    message = f"`{shown}` may not be there, and then the rule cannot be evaluated"
    return CompileProblem(message, *start.place, f"write {guard} && … before it")


def truth(node: Node) -> bool | None:
    """What an expression gives whatever the values are; None where that depends on them or cannot be seen."""
    match node:
        case Const(kind="bool", value=bool(value)):
            return value
        case Invoked(function="!_", arguments=(of,)):
            inner = truth(of)
            return None if inner is None else not inner
        case Invoked(function="_&&_"):
            return _joined(node, decides=False, comparison="_==_")
        case Invoked(function="_||_"):
            return _joined(node, decides=True, comparison="_!=_")
        case Invoked(function="_==_" | "_!=_", arguments=(Const() as left, Const() as right)) if left.kind == right.kind:
            return (left.value == right.value) is (node.function == "_==_")
        case _:
            return None


def _joined(node: Invoked, *, decides: bool, comparison: str) -> bool | None:
    """`x == 1 && x == 2` is never true and `x != 1 || x != 2` never false: slips of the other operator."""
    parts = list(_flat(node, node.function))
    truths = [truth(part) for part in parts]
    compared: list[tuple[Node, Const]] = []
    for part in parts:
        if isinstance(part, Invoked) and part.function == comparison:
            left, right = part.arguments
            compared += [(left, right)] if isinstance(right, Const) else [(right, left)] if isinstance(left, Const) else []
    opposed = any(one == other and first.kind == second.kind and first != second
                  for number, (one, first) in enumerate(compared) for other, second in compared[number + 1:])
    if decides in truths or opposed:
        return decides
    return (not decides) if None not in truths else None


def _flat(node: Node, operator: str) -> Iterator[Node]:
    if isinstance(node, Invoked) and node.function == operator:
        yield from chain.from_iterable(_flat(part, operator) for part in node.arguments)
    else:
        yield node


@dataclass(frozen=True, slots=True)
class Reach:
    """Which calls a rule is for: its phase, its match keys and its condition. What of a rule is compared with other rules."""

    id: str
    phase: str
    effect: str
    mode: Literal["enforce", "shadow", "off"]
    match: Mapping[str, tuple[str, ...]]
    when: str | None


def beside(rules: Sequence[Reach]) -> Iterator[tuple[int, str, str]]:
    """Rules that other rules leave nothing to do: the number of the rule, what is wrong, and a hint."""
    deciding = _Deciding(rules)
    for number, rule in enumerate(rules):
        if rule.mode == "enforce" and rule.effect != "log":
            said = (_made_vain(rule, rules[other], earlier=other < number) for other in deciding.candidates(rule) if other != number)
            found = next((each for each in said if each), None)
            if found:
                yield (number, *found)


class _Deciding:
    """The rules that may leave another nothing to do, found without comparing each with each: there may be ten thousand."""

    def __init__(self, rules: Sequence[Reach]) -> None:
        self._found: dict[tuple[str, str | None, str, str], list[int]] = {}
        for number, rule in enumerate(rules):
            if rule.mode == "enforce" and rule.effect in {"deny", "allow"}:
                key, globs = next(((key, globs) for key, globs in rule.match.items() if globs), ("", ("",)))
                for glob in dict.fromkeys("*" if _is_glob(glob) else glob for glob in globs):
                    self._found.setdefault((rule.phase, rule.when, key, glob), []).append(number)

    def candidates(self, rule: Reach) -> list[int]:
        """Those with the same condition or none, whose first key could take all that this rule's does."""
        places = [("", ""), *((key, glob) for key, globs in rule.match.items() if globs for glob in ("*", globs[0]))]
        return sorted({number for when in (None, rule.when) for place in places
                       for number in self._found.get((rule.phase, when, *place), ())})


def _made_vain(rule: Reach, other: Reach, *, earlier: bool) -> tuple[str, str] | None:
    """Whether `other` has decided wherever `rule` could. `deny` wins wherever it stands; among equals the first does."""
    if other.effect not in {"deny", rule.effect} or (other.effect == rule.effect and not earlier):
        return None
    same = dict(other.match) == dict(rule.match) and other.when == rule.when
    if same and other.effect == rule.effect:
        return f'says the same as the rule "{other.id}"', "take one of them out"
    if other.effect != "deny" or not _wider(other.match, rule.match):
        return None
    if same and rule.effect == "allow":
        return f'allows what the rule "{other.id}" denies, for the same calls: deny wins', "take one of them out"
    return (f'never has an effect: the rule "{other.id}" denies every call that it is for',
            "narrow the other rule's `match`, or give it a `when`")


def _wider(wide: Mapping[str, Iterable[str]], narrow: Mapping[str, Sequence[str]]) -> bool:
    """Whether every call that fits `narrow` fits `wide`, as far as can be seen from the globs."""
    return all(not globs or (bool(narrow.get(key)) and all(_covered(glob, globs) for glob in narrow[key])) for key, globs in wide.items())


def _covered(glob: str, by: Iterable[str]) -> bool:
    return any(other in {glob, "*"} or (not _is_glob(glob) and fnmatchcase(glob, other)) for other in by)


def _is_glob(text: str) -> bool:
    return any(sign in text for sign in "*?[")
