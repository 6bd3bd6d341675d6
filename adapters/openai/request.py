"""Requests: what a client asked is checked where the gateway acts on it, and written again for the provider."""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from gateway.wire import Ask, Call, InvalidRequest, JsonObject, Secret, Target, UpstreamRequest, dumps

from .wire import PATHS

_LONGEST_MODEL: Final = 256
_LONGEST_USER: Final = 200
_LONGEST_HINT: Final = 1000
_SAYING: Final = frozenset({"metadata", "conversation", "previous_response_id", "user", "safety_identifier"})
_NOTHING: Final[Mapping[str, str]] = {}
_OF_SESSIONS: Final = ("session_id", "conversation_id", "user_id")  # names in `metadata` that clients have for it, the closest first

_Shape: TypeAlias = Mapping[str, "_Shape"]

# The fields that the gateway or its rules read, nested as in the body. Beside one of them no variant in another case is
# taken: some servers match names without regard to case, and would act on the one that was not judged. What hangs below
# a field that is not listed (a tool's schema, metadata) is the client's own and is not looked at.
_LEAF: Final[_Shape] = {}
_FUNCTION: Final[_Shape] = dict.fromkeys(("name", "description", "parameters", "arguments", "strict"), _LEAF)
_TOOL: Final[_Shape] = {**dict.fromkeys(("id", "type", "name"), _LEAF), "function": _FUNCTION, "custom": _FUNCTION}
_PART: Final[_Shape] = dict.fromkeys(("type", "text", "image_url", "input_audio", "file", "refusal", "content", "thinking"), _LEAF)
_MESSAGE: Final[_Shape] = {
    **dict.fromkeys(("role", "name", "tool_call_id", "refusal", "reasoning_content", "reasoning", "audio"), _LEAF),
    "content": _PART,
    "tool_calls": _TOOL,
    "function_call": _FUNCTION,
}
_BODY: Final[_Shape] = {
    **dict.fromkeys((
        "model", "stream", "prompt", "suffix", "input", "n", "best_of", "max_tokens", "max_completion_tokens", "user",
        "metadata", "safety_identifier", "service_tier", "store", "response_format", "modalities", "web_search_options",
        "conversation", "previous_response_id",
        "temperature", "top_p", "stop", "seed", "logprobs", "top_logprobs", "reasoning_effort", "parallel_tool_calls",
        "dimensions", "encoding_format",
        # other servers' words for the longest answer, which money may make shorter
        "max_output_tokens", "max_new_tokens", "max_length", "n_predict", "num_predict", "min_tokens", "min_length",
    ), _LEAF),
    "stream_options": {"include_usage": _LEAF},
    "messages": _MESSAGE,
    "tools": _TOOL,
    "tool_choice": _TOOL,
    "functions": _FUNCTION,
    "function_call": _FUNCTION,
}


def read(operation: str, body: JsonObject) -> Ask:
    """Check what the gateway acts on. The first wrong thing raises `InvalidRequest` with its JSON pointer."""
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", pointer="")
    variant = _case_variant(body, _BODY)
    if variant is not None:
        raise InvalidRequest("This field's name differs only in case from one the gateway acts on.", pointer=variant)
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= _LONGEST_MODEL:
        message = f"`model` must be a string of 1 to {_LONGEST_MODEL} characters."
        raise InvalidRequest(message, pointer="/model")
    _check_content(operation, body)
    user = _read_user(body)
    return Ask(model, stream=_read_stream(operation, body), user=user, hints=_read_hints(body, user))


def _read_user(body: JsonObject) -> str:
    """Who asks, as the client names them: `user`, or what has taken its place. A budget of users counts by it."""
    for name in ("user", "safety_identifier"):
        value = body.get(name)
        if value is None or value == "":
            continue
        if not isinstance(value, str) or len(value) > _LONGEST_USER or not value.isprintable():
            message = f"`{name}` must be a string of at most {_LONGEST_USER} printable characters."
            raise InvalidRequest(message, pointer=f"/{name}")
        return value
    return ""


def _read_hints(body: JsonObject, user: str) -> Mapping[str, str]:
    """What the body says of where the call belongs. These are the provider's fields: what is not as expected is no hint, and no error."""
    if body.keys().isdisjoint(_SAYING):
        return _NOTHING
    metadata, conversation = body.get("metadata"), body.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    named = [_hint(metadata.get(name)) for name in _OF_SESSIONS] if isinstance(metadata, dict) else []
    told = {"metadata": next(filter(None, named), ""), "conversation": _hint(conversation),
            "previous": _hint(body.get("previous_response_id")), "user": user}
    return {name: value for name, value in told.items() if value}


def _hint(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= _LONGEST_HINT else ""


def wants_usage(call: Call) -> bool:
    """Whether the client itself asked for the usage of a stream."""
    options = call.body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def encode(call: Call, target: Target, api_key: Secret | None) -> UpstreamRequest:
    """The provider's request: the judged body with the target's model, and a stream's usage always asked for."""
    body = {**call.body, "model": target.model}
    if call.stream:
        body["stream_options"] = {**(call.body.get("stream_options") or {}), "include_usage": True}
    headers = {
        "content-type": "application/json",
        "accept": "text/event-stream" if call.stream else "application/json",
    }
    return UpstreamRequest("POST", PATHS[call.operation], {**headers, **_credential(api_key)}, dumps(body))


def health(path: str, api_key: Secret | None) -> UpstreamRequest:
    """The request that asks whether the provider is well."""
    return UpstreamRequest("GET", path, {"accept": "application/json", **_credential(api_key)}, b"")


def _credential(api_key: Secret | None) -> dict[str, str]:
    return {} if api_key is None else {"authorization": f"Bearer {api_key.reveal()}"}


def _check_content(operation: str, body: JsonObject) -> None:
    if operation == "chat":
        _check_messages(body.get("messages"))
    elif operation == "completions":
        if not isinstance(body.get("prompt"), str | list):
            raise InvalidRequest("`prompt` must be a string or a list.", pointer="/prompt")
    elif body.get("input") is None:
        raise InvalidRequest("`input` is missing.", pointer="/input")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("`messages` must be a list with at least one message.", pointer="/messages")
    for n, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest("A message must be an object.", pointer=f"/messages/{n}")
        if not isinstance(message.get("role"), str):
            raise InvalidRequest("A message needs a `role`, a string.", pointer=f"/messages/{n}/role")


def _read_stream(operation: str, body: JsonObject) -> bool:
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("`stream` must be true or false.", pointer="/stream")
    if stream and operation == "embeddings":
        raise InvalidRequest("Embeddings are not streamed; leave `stream` out.", pointer="/stream")
    options = body.get("stream_options")
    if options is not None:
        if not isinstance(options, dict):
            raise InvalidRequest("`stream_options` must be an object.", pointer="/stream_options")
        if not isinstance(options.get("include_usage"), bool | None):
            message = "`include_usage` must be true or false."
            raise InvalidRequest(message, pointer="/stream_options/include_usage")
    return stream is True


def _case_variant(value: Any, shape: _Shape) -> str | None:
    """The JSON pointer, from here, of the first key that is a field of `shape` but for its case.

    Case is folded as Unicode does: the long s and the Kelvin sign are an s and a k to such servers, too.
    """
    if isinstance(value, list):
        for n, item in enumerate(value):
            if isinstance(item, list | dict) and (below := _case_variant(item, shape)) is not None:
                return f"/{n}{below}"
    elif isinstance(value, dict):
        for key, item in value.items():
            inner = shape.get(key)
            if inner is None:
                if key.casefold() in shape:
                    return f"/{key}"
            elif inner and (below := _case_variant(item, inner)) is not None:
                return f"/{key}{below}"
    return None
