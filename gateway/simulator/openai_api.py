"""OpenAI's API as a provider speaks it: chat completions, completions, embeddings and models. Pure.

Shapes as in https://platform.openai.com/docs/api-reference. What is said comes from `model.py`, what is refused from
`openai_check.py`.
"""

import base64
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.simulator.answer import Answer, Ask, Billed, Frame, JsonObject
from gateway.simulator.model import (
    ToolCall,
    Utterance,
    answer_text,
    asked_calls,
    count_tokens,
    tool_call,
    utter,
    utter_calls,
    vector,
)
from gateway.simulator.openai_check import (
    check_chat,
    check_completions,
    check_embeddings,
    check_known,
    error_object,
    refused,
)
from gateway.simulator.scenario import bare_model
from gateway.simulator.schema import example

_MESSAGE_TOKENS, _REPLY_TOKENS, _IMAGE_TOKENS, _TOOL_TOKENS = 4, 3, 85, 10
_REASONING: Final[Mapping[str, int]] = {"minimal": 8, "low": 16, "medium": 64, "high": 256, "xhigh": 1024}
_DIMENSIONS = 1536
_MODELS_CREATED_S = 1_735_689_600
_LOGPROB = -0.1  # of every token, unless the provider is told another
_DONE = b"data: [DONE]\n\n"
_CHAT_EXTRAS: Final[Mapping[str, str]] = {"service_tier": "default", "system_fingerprint": "fp_simulator"}


class OpenAI:
    """The dialect. See `answer.Dialect`."""

    endpoints: Mapping[tuple[str, str], str] = {
        ("POST", "/v1/chat/completions"): "chat",
        ("POST", "/v1/completions"): "completions",
        ("POST", "/v1/embeddings"): "embeddings",
        ("GET", "/v1/models"): "models",
        ("GET", "/v1/models/{item:.+}"): "model",
    }

    def answer(self, ask: Ask) -> Answer:
        return _OPERATIONS[ask.operation](ask)

    def error(self, status: int, message: str | None = None, *, code: str | None = None) -> Answer:
        return Answer(status, orjson.dumps(error_object(status, message, code=code), option=orjson.OPT_INDENT_2))

    def error_frame(self) -> bytes:
        return _frame(error_object(500))


@dataclass(frozen=True, slots=True)
class _Prompt:
    """What matters of a conversation: its last user message, its tokens, and whether a tool has answered since.

    `prefix` is what the answer begins with already (`continue_final_message`, as with vLLM).
    """

    text: str
    tokens: int
    cached: int
    tool_answered: bool
    prefix: str


def _chat(ask: Ask) -> Answer:
    body = ask.body
    check_chat(body)
    prompt = _prompt(body)
    said = [_say(ask, prompt, number) for number in range(body.get("n") or 1)]
    usage = _usage(prompt.tokens, prompt.cached, said)
    reasons = [_finish_reason(ask, utterance) for utterance in said]
    if body.get("stream"):
        head = _head(ask, "chatcmpl", "chat.completion.chunk", **_CHAT_EXTRAS)
        return _streamed(head, ask, _deltas(ask, said, reasons), usage)
    choices = [{"index": number, "message": _message(ask, utterance, number), "logprobs": _logprobs(ask, utterance.text),
                "finish_reason": reason}
               for number, (utterance, reason) in enumerate(zip(said, reasons, strict=True))]
    head = _head(ask, "chatcmpl", "chat.completion", choices=choices)
    return _whole(head, ask, usage, **_CHAT_EXTRAS)


def _completions(ask: Ask) -> Answer:
    body = ask.body
    check_completions(body)
    prompts = _texts(body.get("prompt") or "<|endoftext|>")
    said = [_text_answer(ask, text, number) for text, _count in prompts for number in range(body.get("n") or 1)]
    usage = _usage(sum(count for _text, count in prompts), 0, said)
    if body.get("stream"):
        return _streamed(_head(ask, "cmpl", "text_completion"), ask, _text_deltas(ask, said), usage)
    choices = [{"text": "".join(utterance.text), "index": number, "logprobs": None,
                "finish_reason": _finish_reason(ask, utterance)} for number, utterance in enumerate(said)]
    return _whole(_head(ask, "cmpl", "text_completion", choices=choices), ask, usage)


def _embeddings(ask: Ask) -> Answer:
    body = ask.body
    check_embeddings(body)
    inputs = _texts(body["input"])
    vectors = [vector(text, body.get("dimensions") or _DIMENSIONS) for text, _count in inputs]
    if body.get("encoding_format") == "base64":
        values: list[Any] = [base64.b64encode(struct.pack(f"<{len(one)}f", *one)).decode() for one in vectors]
    else:
        values = [one.tolist() for one in vectors]
    count = sum(count for _text, count in inputs)
    data = [{"object": "embedding", "index": number, "embedding": value} for number, value in enumerate(values)]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return _whole({"object": "list", "data": data, "model": bare_model(body["model"])}, ask, usage)


def _models(ask: Ask) -> Answer:
    return Answer(body=orjson.dumps({"object": "list", "data": [_model(name) for name in ask.models]}))


def _one_model(ask: Ask) -> Answer:
    check_known(ask.item)
    return Answer(body=orjson.dumps(_model(ask.item)))


_OPERATIONS: Final[Mapping[str, Callable[[Ask], Answer]]] = {
    "chat": _chat, "completions": _completions, "embeddings": _embeddings, "models": _models, "model": _one_model,
}


def _model(name: str) -> JsonObject:
    return {"id": name, "object": "model", "created": _MODELS_CREATED_S, "owned_by": "simulator"}


def _head(ask: Ask, prefix: str, kind: str, **more: Any) -> JsonObject:
    return {"id": f"{prefix}-sim{ask.number:024d}", "object": kind, "created": ask.created_s,
            "model": bare_model(ask.body["model"]), **more}


def _whole(head: JsonObject, ask: Ask, usage: JsonObject, **more: Any) -> Answer:
    told = {} if ask.manner.no_usage else {"usage": usage}
    return Answer(body=orjson.dumps(head | told | more), usage=told.get("usage"), billed=_billed(usage))


def _billed(usage: JsonObject) -> Billed:
    return Billed(usage["prompt_tokens"], usage.get("completion_tokens", 0))


def _frame(chunk: JsonObject) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _streamed(head: JsonObject, ask: Ask, choices: Iterable[tuple[JsonObject, int]], usage: JsonObject) -> Answer:
    """A stream of one choice a chunk. Asked for, the usage comes last, and every other chunk says `"usage": null`."""
    asked = (ask.body.get("stream_options") or {}).get("include_usage") is True
    told = usage if asked and not ask.manner.no_usage else None
    # All chunks are alike but for their choice, so the rest is written as JSON once: a stream costs little more than its sending.
    before = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
    after = b"]}\n\n" if told is None else b'],"usage":null}\n\n'
    frames = (Frame(before + orjson.dumps(choice) + after, tokens) for choice, tokens in choices)
    usage_frame = b"" if told is None else _frame({**head, "choices": [], "usage": told})
    return Answer(frames=frames, usage_frame=usage_frame, done_frame=_DONE, usage=told, billed=_billed(usage))


def _deltas(ask: Ask, said: Sequence[Utterance], reasons: Sequence[str]) -> Iterator[tuple[JsonObject, int]]:
    """Each choice as OpenAI streams it: the role, then text or calls in pieces, then an empty delta with the reason.

    With each the tokens made for it; the hidden ones come before the first.
    """
    likely = ask.body.get("logprobs") is True
    for number, (utterance, reason) in enumerate(zip(said, reasons, strict=True)):
        content = None if utterance.calls else ""
        yield _choice(number, {"role": "assistant", "content": content, "refusal": None}), utterance.reasoning
        for token in utterance.text:
            yield _choice(number, {"content": token}, logprobs=_logprobs(ask, (token,)) if likely else None), 1
        for place, call in enumerate(utterance.calls):
            start = {"index": place, "id": _call_id(ask, number, place), "type": "function"}
            yield _choice(number, {"tool_calls": [{**start, "function": {"name": call.name, "arguments": ""}}]}), 1
            for piece in call.arguments:
                yield _choice(number, {"tool_calls": [{"index": place, "function": {"arguments": piece}}]}), 1
        yield _choice(number, {}, reason), 0


def _choice(number: int, delta: JsonObject, reason: str | None = None, logprobs: JsonObject | None = None) -> JsonObject:
    return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(ask: Ask, text: Sequence[str]) -> JsonObject | None:
    """How likely each token of a text was, all the same, and `top_logprobs` of what it might have been; None unless asked for."""
    if ask.body.get("logprobs") is not True or not text:
        return None
    value = _LOGPROB if ask.manner.logprob is None else ask.manner.logprob
    wanted = ask.body.get("top_logprobs") or 0
    content = []
    for token in text:
        top = [_likely(token if rank == 0 else f" other{rank}", value - rank) for rank in range(wanted)]
        content.append({**_likely(token, value), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _likely(token: str, logprob: float) -> JsonObject:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _text_deltas(ask: Ask, said: Sequence[Utterance]) -> Iterator[tuple[JsonObject, int]]:
    for number, utterance in enumerate(said):
        for token in utterance.text:
            yield {"text": token, "index": number, "logprobs": None, "finish_reason": None}, 1
        yield {"text": "", "index": number, "logprobs": None, "finish_reason": _finish_reason(ask, utterance)}, 0


def _message(ask: Ask, utterance: Utterance, number: int) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": "".join(utterance.text), "refusal": None, "annotations": []}
    if utterance.calls:
        message["content"] = None
        message["tool_calls"] = [
            {"id": _call_id(ask, number, place), "type": "function",
             "function": {"name": call.name, "arguments": "".join(call.arguments)}}
            for place, call in enumerate(utterance.calls)]
    return message


def _finish_reason(ask: Ask, utterance: Utterance) -> str:
    if ask.manner.finish_reason is not None:
        return ask.manner.finish_reason
    if utterance.cut:
        return "length"
    # OpenAI ends an answer with "stop" when tool_choice names the tool: the call was not the model's choice.
    return "tool_calls" if utterance.calls and not isinstance(ask.body.get("tool_choice"), dict) else "stop"


def _say(ask: Ask, prompt: _Prompt, number: int) -> Utterance:
    body, manner = ask.body, ask.manner
    limit = None if manner.ignore_limits else body.get("max_completion_tokens") or body.get("max_tokens")
    reasoning = _REASONING.get(body.get("reasoning_effort") or "", 0)
    if manner.huge:
        return Utterance(("x" * manner.huge,))
    if manner.content is not None:
        return utter(manner.content.removeprefix(prompt.prefix), limit=limit, reasoning=reasoning)
    calls = _calls(body, prompt)
    if calls:
        return utter_calls(calls, limit=limit, reasoning=reasoning)
    text = _formatted(answer_text(prompt.text, f"{body.get('seed')}:{number}"), body.get("response_format") or {})
    return utter(text.removeprefix(prompt.prefix), limit=limit, reasoning=reasoning)


def _text_answer(ask: Ask, prompt: str, number: int) -> Utterance:
    manner = ask.manner
    if manner.huge:
        return Utterance(("x" * manner.huge,))
    limit = None if manner.ignore_limits else ask.body.get("max_tokens")
    text = answer_text(prompt, f"{ask.body.get('seed')}:{number}") if manner.content is None else manner.content
    return utter(text, limit=limit)


def _formatted(text: str, response_format: JsonObject) -> str:
    """The text in the shape that was asked for; an object is spaced so that it has tokens to stream."""
    if response_format.get("type") == "json_object":
        return json.dumps({"answer": text})
    if response_format.get("type") == "json_schema":
        described = response_format.get("json_schema")
        schema = described.get("schema", {}) if isinstance(described, dict) else None
        return json.dumps(_valid(schema, "response_format"))
    return text


def _valid(schema: Any, param: str) -> Any:
    try:
        return example(schema)
    except ValueError as error:
        raise refused(f"Invalid schema for '{param}': {error}", param, "invalid_schema") from error


def _calls(body: JsonObject, prompt: _Prompt) -> list[ToolCall]:
    """The tools to call: those the prompt asks for by name, else the one that tool_choice forces, with an example."""
    functions = [tool["function"] for tool in body.get("tools") or [] if tool["type"] == "function"]
    offered = {function["name"]: function for function in functions}
    choice = body.get("tool_choice")
    named = choice["function"]["name"] if isinstance(choice, dict) and choice.get("type") == "function" else None
    if not offered or choice == "none" or (prompt.tool_answered and named is None and choice != "required"):
        return []
    calls = [call for call in asked_calls(prompt.text) if call.name in offered and named in (None, call.name)]
    if not calls and (named is not None or choice == "required"):
        forced = named if named is not None else next(iter(offered))
        if forced not in offered:
            raise refused(f"Invalid value for 'tool_choice': no tool {forced[:64]!r} in 'tools'.", "tool_choice")
        calls = [tool_call(forced, _valid(offered[forced].get("parameters") or {"type": "object"}, "tools"))]
    return calls[:1] if body.get("parallel_tool_calls") is False else calls


def _call_id(ask: Ask, choice: int, place: int) -> str:
    return f"call_sim{ask.number:012d}{choice:03d}{place:06d}"


def _prompt(body: JsonObject) -> _Prompt:
    text, tool_answered, costs = "", False, []
    for message in body["messages"]:
        said, images = _content(message.get("content"))
        costs.append(_MESSAGE_TOKENS + count_tokens(said) + images * _IMAGE_TOKENS)
        if message["role"] == "user":
            text, tool_answered = said, False
        elif message["role"] in ("tool", "function"):
            tool_answered = True
    total = sum(costs) + _REPLY_TOKENS + _TOOL_TOKENS * len(body.get("tools") or [])
    prefix = said if body.get("continue_final_message") else ""
    return _Prompt(text, total, sum(costs[:-1]) if body.get("prompt_cache_key") else 0, tool_answered, prefix)


def _content(content: Any) -> tuple[str, int]:
    """The text of a message's content and the number of its images."""
    if not isinstance(content, list):
        return content or "", 0
    parts = [part for part in content if isinstance(part, dict)]
    texts = [part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str)]
    return "\n".join(texts), sum(part.get("type") == "image_url" for part in parts)


def _texts(given: Any) -> list[tuple[str, int]]:
    """The inputs of a prompt or an embedding, each with its tokens. Token numbers read as a text of as many words."""
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    return [(one, count_tokens(one)) if isinstance(one, str) else (" ".join(map(str, one)), len(one)) for one in inputs]


def _usage(prompt: int, cached: int, said: Sequence[Utterance]) -> JsonObject:
    completion = sum(utterance.tokens for utterance in said)
    return {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(utterance.reasoning for utterance in said), "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
    }
