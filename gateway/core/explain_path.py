"""How a call found its way, made of its record: what was planned, what was tried and why, how each try ended, what the client got. Pure.

Durations are milliseconds, moments milliseconds after the call's arrival.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.call import Json, JsonObject

KINDS: Final = ("mirror", "classifier", "verify")  # what a call is that the gateway makes itself, as a label of it
_LONGEST_MESSAGE: Final = 200
_GOT: Final[Mapping[str, str]] = {
    "completed": "the client got the whole answer ({status})",
    "refused": "the client got {status} {code}, and nothing was sent on{message}",
    "failed": "the client got {status} {code}{message}",
    "withheld": "the answer was kept from the client, which got {status} {code}{message}",
    "cut": "the client got a part of the answer, and then the error {code}{message}",
    "cancelled": "the client went away before the end",
    "interrupted": "the gateway stopped before the end, so that nobody knows what the client got",
    "open": "the call has not ended yet"}


def path_of(call: JsonObject, parts: Sequence[JsonObject]) -> dict[str, Json]:
    """What `explain` tells of the way. `call` is a call with its attempts, `parts` are the calls that were made for it, from the journal.

    What a record does not hold, as one of before there were plans, is null.
    """
    received_ns = call["received_ns"]
    made = [_part(part, received_ns) for part in parts]
    return {
        "part_of": call.get("part_of"), "approval": call.get("approval"), "grants": list(call.get("grants") or ()),
        "task": _task(call, made), "plan": call.get("plan"),
        "attempts": [*_attempts(call.get("attempts") or (), received_ns)], "parts": made,
        "answer": {"at_ms": _ms(received_ns, call.get("ended_ns")), "said": _got(call)},
    }


def _part(part: JsonObject, received_ns: int) -> dict[str, Json]:
    return {
        "call": part["id"], "kind": kind_of(part.get("labels") or ()), "target": part["target"], "outcome": part["outcome"],
        "at_ms": _ms(received_ns, part["received_ns"]), "ms": _ms(part["received_ns"], part["ended_ns"]), "cost_usd": part["cost_usd"]}


def kind_of(labels: Sequence[str]) -> str:
    """What a call is that was made for another one, by its labels."""
    return next((kind for kind in KINDS if kind in labels), "part")


def _task(call: JsonObject, parts: Sequence[JsonObject]) -> dict[str, Json] | None:
    name = (call.get("plan") or {}).get("task")
    if not name:
        return None
    asked = next((part for part in parts if part["kind"] == "classifier"), None)
    return {"name": name, "classifier": asked and {key: asked[key] for key in ("call", "target", "outcome", "ms", "cost_usd")}}


def _attempts(attempts: Sequence[JsonObject], received_ns: int) -> Iterator[dict[str, Json]]:
    for number, tried in enumerate(attempts):
        usage = tried["usage"]
        yield {
            **{name: tried[name] for name in (
                "n", "target", "why", "end", "cause", "status", "waited_s", "largest_gap_s", "breaker", "retries_left", "cost_usd")},
            "message": _clipped(tried["message"]), "at_ms": _ms(received_ns, tried["started_ns"]),
            "ms": _ms(tried["started_ns"], tried["ended_ns"]), "first_byte_ms": _ms(tried["started_ns"], tried["first_byte_ns"]),
            "output_tokens": usage["output_tokens"] if usage else None, "estimated": bool(usage and usage["estimated"]),
            "said": _said(tried, attempts[:number]),
        }


def _said(tried: JsonObject, before: Sequence[JsonObject]) -> str:
    """Why an attempt was made, in words."""
    waited = f" after {tried['waited_s'] * 1000:.0f} ms" if tried["waited_s"] else ""
    if not before:
        return f"first{waited}"
    last = before[-1]
    match tried["why"]:
        case "hedge":
            beside = [each["n"] for each in before if each["ended_ns"] is None or each["ended_ns"] > tried["started_ns"]]
            return f"hedge beside attempt {beside[-1] if beside else last['n']}{waited}"
        case "cascade":
            return f"cascade{waited}: the answer of attempt {last['n']} was not good enough"
        case "continuation":
            usage = last["usage"]  # one of ours is what it costs at the most, and not what came
            came = f"after {usage['output_tokens']} tokens of" if usage and not usage["estimated"] else "of"
            return f"continuation {came} attempt {last['n']}{waited}"
        case None:  # it is not on record: it is older than the reasons
            return f"{'the same target again' if last['target'] == tried['target'] else 'another target'}{waited}"
        case why:
            return f"{why}{waited}"


def _got(call: JsonObject) -> str:
    judged = call["outcome"] == "refused" and call.get("decision") != "allow"  # then it is the decision that says why
    message = None if judged else _clipped(call.get("message"))
    given = {"status": call.get("status") or "", "code": call.get("code") or "", "message": f": {message}" if message else ""}
    return " ".join(_GOT[call["outcome"]].format(**given).split())


def _clipped(text: str | None) -> str | None:
    return text if text is None or len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}…"


def _ms(begin_ns: int, end_ns: Any) -> float | None:
    return None if end_ns is None else round((end_ns - begin_ns) / 1e6, 1)
