"""What one decision costs: CPU of `gather` and `decide` together, with 10 to 10,000 rules of which 10 apply, on both CEL engines.

The rules are like people's own: ten are for the caller's team, the others for other teams, routes, keys and tools. None of the ten
denies, so all are evaluated. They read who asks, and parameters; in the second half of the rows one of them reads every text as well,
which costs what the body is long. The two engines are measured in turn, round by round, and a
round's ratio is its own: on a machine whose speed drifts the ratio holds where the times do not. The table shows medians.

Then the worst that a caller, or a rule that passes the checks, can make of one decision: expressions and bodies made to be slow. The
event loop stands still meanwhile, so each has to stay below 50 ms on the C++ engine. A large body is judged in a thread: there it is
the longest step that no other thread could interrupt.

    python benchmarks/policy.py [--rounds 5] [--decisions 200] [--rules 10,100,1000,10000] [--seed N] [--json]
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gateway.call import Call, Principal
from gateway.core.decide import decide
from gateway.core.question import Question
from gateway.core.rules import Bundle, compile_bundle
from gateway.gather import gather
from gateway.rule_config import RuleConfig

ENGINES = ("cel-expr-python", "cel-python")
APPLYING = 10
TARGET_US = 150.0  # at 1,000 rules, on the C++ engine
LONGEST_MS = 50.0
MOST_SLOW_RULES = 1000  # cel-python takes milliseconds to load one rule
WORDS = ("invoice", "weather", "the", "of", "translate", "summary", "please", "quarter", "holiday", "contract", "ünïcode", "agent")

# What the rules that apply look at: who asks, and what for.
CONDITIONS = (
    "request.max_tokens > 1000{n}", 'request.model.startsWith("x{n}")', 'principal.team == "x{n}" || "x{n}" in principal.roles',
    'has(request.params.user) && request.params.user == "x{n}"', "request.size > 1000000{n}", 'route == "x{n}"',
    '"env" in tags && tags["env"] == "x{n}"', 'session.id == "x{n}" && request.stream', 'request.operation == "x{n}"', "now.getFullYear() > 1{n}000")

READING_TEXTS = 'texts.exists(t, t.contains("secret-{n}"))'


@dataclass(frozen=True)
class Figure:
    """One round: CPU in µs a decision, and its ratio to the C++ engine with the same rules and body in that round."""

    engine: str
    rules: int
    reads_texts: bool
    body_bytes: int
    cpu_us: float
    ratio: float


@dataclass(frozen=True)
class Worst:
    """The longest that a decision that was made to be slow let other calls wait: ms of CPU, or of time where it is made `beside` the loop."""

    what: str
    engine: str
    held_ms: float
    beside: bool


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="runs of each")
    options.add_argument("--decisions", type=int, default=200, help="decisions in a run (of cel-python a twentieth)")
    options.add_argument("--rules", default="10,100,1000,10000", help="sizes of the bundle")
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of the order of rules and of the bodies")
    options.add_argument("--json", action="store_true", help="print the figures as JSON")
    chosen = options.parse_args()
    sizes = [int(size) for size in chosen.rules.split(",")]
    figures = measure(random.Random(chosen.seed), sizes, chosen.rounds, chosen.decisions)  # noqa: S311 - seeded dice, printed
    worst = [slow for engine in ENGINES[:1] for slow in slowest(engine)]
    if chosen.json:
        print(json.dumps({"seed": chosen.seed, "decisions": [asdict(each) for each in figures], "slowest": [asdict(each) for each in worst]}, indent=2))
    else:
        table(figures, worst, chosen.seed)


def measure(dice: random.Random, sizes: list[int], rounds: int, decisions: int) -> list[Figure]:
    figures = []
    for reads_texts in (False, True):
        for size in sizes:
            rules = bundle_of(size, dice, reads_texts=reads_texts)
            bundles = {engine: compile_bundle(rules, engine) for engine in ENGINES if engine == ENGINES[0] or size <= MOST_SLOW_RULES}
            for characters in (1_000, 200_000):
                asked, bytes_ = question(characters, dice)
                for bundle in bundles.values():
                    judge(bundle, asked)  # warm: the selection is made
                for _ in range(rounds):
                    cost = {engine: cpu_us(bundle, asked, decisions if engine == ENGINES[0] else max(1, decisions // 20))
                            for engine, bundle in bundles.items()}
                    figures += [Figure(engine, size, reads_texts, bytes_, us, us / cost[ENGINES[0]]) for engine, us in cost.items()]
    return figures


def judge(bundle: Bundle, asked: Question) -> None:
    decision = decide(bundle, asked.phase, gather(bundle, asked))
    if decision.name != "allow" or len(decision.reasons) != APPLYING:
        raise SystemExit(f"not what was to be measured: {decision}")


def cpu_us(bundle: Bundle, asked: Question, decisions: int) -> float:
    start = time.process_time_ns()
    for _ in range(decisions):
        judge(bundle, asked)
    return (time.process_time_ns() - start) / decisions / 1000


def bundle_of(size: int, dice: random.Random, *, reads_texts: bool) -> list[RuleConfig]:
    """Ten rules for the caller's team, all others for somebody or something else."""
    conditions = [READING_TEXTS if reads_texts else CONDITIONS[0], *CONDITIONS[1:]]
    rules = [rule(n, {"teams": ["search"]}, conditions[n % len(conditions)].format(n=n)) for n in range(APPLYING)]
    others: list[Callable[[int], dict[str, list[str]]]] = [
        lambda n: {"teams": [f"team-{n}"]}, lambda n: {"routes": [f"route-{n}-*"]}, lambda n: {"teams": ["search"], "roles": [f"role-{n}"]},
        lambda n: {"principals": [f"key-{n}"]}, lambda n: {"tools": [f"ns{n}.*"]}]
    rules += [rule(n, others[n % len(others)](n), conditions[n % len(conditions)].format(n=n)) for n in range(APPLYING, size)]
    dice.shuffle(rules)
    return rules


def rule(n: int, match: dict[str, list[str]], when: str) -> RuleConfig:
    return RuleConfig.model_validate({"id": f"rule-{n}", "effect": "deny", "match": match, "when": when})


def question(characters: int, dice: random.Random) -> tuple[Question, int]:
    """A conversation of about so many characters, with the bytes that it has as JSON."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are kind and brief."}]
    while sum(len(message["content"]) for message in messages) < characters:
        messages.append({"role": dice.choice(("user", "assistant")), "content": " ".join(dice.choices(WORDS, k=dice.randrange(20, 120)))})
    return ask({"model": "fast", "temperature": 0.2, "max_tokens": 64, "user": "u1", "messages": messages,
                "tools": [{"type": "function", "function": {"name": f"tool_{n}"}} for n in range(3)]})


def ask(body: dict[str, Any]) -> tuple[Question, int]:
    size = len(json.dumps(body).encode())
    principal = Principal("key_0", name="bench", team="search", roles=("dev",))
    call = Call("call_0", principal, "openai", "chat", "fast", body, stream=False, size=size, received_ns=0)
    return Question("request", call, 1_700_000_000_000_000_000), size


# The worst


def slowest(engine: str) -> Iterator[Worst]:
    for what, rules, bodies in hostile():
        bundle = compile_bundle(rules, engine)
        asked = [ask(body)[0] for body in bodies]
        if asked[0].large:
            yield Worst(what, engine, min(held_up_ms(bundle, asked) for _ in range(3)), beside=True)
        else:
            yield Worst(what, engine, max(alone_ms(bundle, each) for each in asked), beside=False)


def alone_ms(bundle: Bundle, asked: Question) -> float:
    start = time.process_time_ns()
    decide(bundle, "request", gather(bundle, asked))
    return (time.process_time_ns() - start) / 1e6


def held_up_ms(bundle: Bundle, questions: list[Question]) -> float:
    """The longest that another thread waited for its turn while these were judged. The least of a few tries is the gateway's own doing."""
    judging = threading.Thread(target=lambda: [decide(bundle, "request", gather(bundle, asked)) for asked in questions])
    longest, before, alive = 0.0, time.perf_counter(), True
    judging.start()
    while alive:
        alive = judging.is_alive()  # asked first: the last wait counts too
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    return longest * 1e3


def ten(when: str) -> list[RuleConfig]:
    """Ten rules of the same kind: a bundle whose author has found a habit."""
    return [rule(n, {}, when.replace("#", str(n))) for n in range(APPLYING)]


def hostile() -> Iterator[tuple[str, list[RuleConfig], list[dict[str, Any]]]]:
    """What is slow, the rules, and the bodies, each of which is judged once: the first time is the slowest."""
    some, many = ({"messages": [{"role": "user", "content": "x"} for _ in range(count)]} for count in (1_600, 60_000))
    large = {"messages": [{"role": "user", "content": "ab " * 3_000_000}]}
    tools = {"tools": [{"type": "function", "function": {"name": f"i{n}"}} for n in range(1300)]}
    yield "1,300 invented tools, 38 globs with a wildcard at both ends", [rule(n, {"tools": [f"*n{n}*"]}, "true") for n in range(38)], [tools, tools]
    yield "1,300 invented tools, 1,000 such globs", [rule(n, {"tools": [f"*n{n}*"]}, "true") for n in range(1000)], [tools, tools]
    yield "1,300 invented tools, 10,000 rules on tools", [rule(n, {"tools": [f"ns{n}.*"]}, "request.stream") for n in range(10_000)], [tools, tools]
    yield ("every call another combination of 60 rules on tools", [
        rule(n, {"tools": [f"t{n}"]}, f'request.size > {n} && texts.exists(t, t.contains("word-{n}"))') for n in range(60)],
        [{"tools": [{"type": f"t{n}"} for n in range(60) if n != without]} for without in range(60)])
    yield "1,600 messages, 10 rules that look at each", ten('messages.exists(m, m.content == "#")'), [some, some]
    yield "1,600 texts, 10 rules that look at each", ten('texts.exists(t, t.contains("word-#"))'), [some, some]
    yield "60,000 messages, 10 rules that look at each", ten('messages.exists(m, m.content == "#")'), [many, many]
    yield "60,000 texts, 10 rules that look at each", ten('texts.exists(t, t.contains("word-#"))'), [many, many]
    yield "60,000 texts, each looked through for 16 words", ten(
        f'texts.exists(t, {json.dumps([f"word-{n}-#" for n in range(16)])}.exists(w, t.contains(w)))'), [many, many]
    yield "9 MB of text, 10 patterns", ten('texts.exists(t, t.matches("(a|b|ab|c#)*$"))'), [large, large]
    yield "9 MB of text, looked through by 10 rules", ten('texts.exists(t, t.contains("word-#"))'), [large, large]
    yield "9 MB of text, read as the whole body", ten('has(request.body.user) && request.body.user == "#"'), [large, large]
    yield "9 MB of text, hashed by 10 rules", ten('texts.exists(t, sha256(t) == "#")'), [large, large]
    yield "9 MB of text, searched for personal data", ten("texts.exists(t, pii(t).size() > 100)")[:1], [large, large]
    yield "9 MB of text, searched for secrets", ten("texts.exists(t, secrets(t).size() > 100)")[:1], [large, large]
    yield "9 MB of text, doubled again and again", ten('texts.exists(t, (t + t + t + t).size() == 5 && t.startsWith("#"))'), [large, large]
    deep: Any = "x"
    for _ in range(240):
        deep = {"a": [deep]}
    yield "a body 480 levels deep", ten("has(request.body.a) && request.body.a.size() == 5 && request.size == #"), [{"a": deep}, {"a": deep}]
    yield "1.7 million numbers", ten("has(request.params.ids) && request.params.ids.size() == #"), [{"ids": list(range(1_700_000))}] * 2


def table(figures: list[Figure], worst: list[Worst], seed: int) -> None:
    print(f"{'rules':>7}{'that apply':>12}  {'reading':<12}{'body bytes':>12}  {'engine':<18}{'CPU µs/decision':>16}{'× cel-expr':>12}")
    for key in dict.fromkeys((each.rules, each.reads_texts, each.body_bytes, each.engine) for each in figures):
        runs = [each for each in figures if (each.rules, each.reads_texts, each.body_bytes, each.engine) == key]
        median = statistics.median(each.cpu_us for each in runs)
        reading = "every text" if key[1] else "who, what"
        over = f"  over the target of {TARGET_US:.0f} µs" if key[3] == ENGINES[0] and key[0] <= 1000 and median > TARGET_US else ""
        print(f"{key[0]:>7}{APPLYING:>12}  {reading:<12}{key[2]:>12}  {key[3]:<18}{median:>16.1f}"
              f"{statistics.median(each.ratio for each in runs):>12.1f}{over}")
    print(f"\n{'the longest that one decision holds the others up':<66}{'ms':>8}")
    for slow in worst:
        where = "in a thread" if slow.beside else "on the loop"
        print(f"{slow.what:<66}{slow.held_ms:>8.1f}  {where}{f', over the limit of {LONGEST_MS:.0f} ms' if slow.held_ms > LONGEST_MS else ''}")
    print(f"\nSeed {seed}, Python {sys.version.split()[0]} on {platform.machine()}, {os.cpu_count()} processors.")


if __name__ == "__main__":
    main()
