"""What OpenAI's API refuses and in which words: the error bodies of `openai_api.py` and the checks that end in one."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from gateway.simulator.answer import Answer, JsonObject, Refused

# What OpenAI says by status: the error's type, its code and its message.
_ERRORS: Final[Mapping[int, tuple[str, str | None, str]]] = {
    400: ("invalid_request_error", None, "Your request is not valid (simulated)."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided (simulated)."),
    404: ("invalid_request_error", None, "Not found (simulated)."),
    413: ("invalid_request_error", None, "The request is too large (simulated)."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests (simulated)."),
    500: ("server_error", None, "The server had an error while processing your request (simulated)."),
    503: ("server_error", None, "The engine is currently overloaded, please try again later (simulated)."),
}
_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_MAX_CHOICES = 128
_MAX_INPUTS = 2048
_MAX_DIMENSIONS = 4096
_MAX_TOP_LOGPROBS = 20
_NAMES: Final[Mapping[type, str]] = {
    str: "a string", bool: "a boolean", int: "an integer", float: "a decimal", dict: "an object", list: "an array",
}


def error_object(status: int, message: str | None = None, *, param: str | None = None,
                 code: str | None = None) -> JsonObject:
    """The error of a status; without a message what OpenAI says then, more or less."""
    kind, usual_code, usual = _ERRORS.get(status) or _ERRORS[500 if status >= 500 else 400]
    code = code or (None if message else usual_code)
    return {"error": {"message": message or usual, "type": kind, "param": param, "code": code}}


def refused(message: str, param: str | None = None, code: str | None = None, status: int = 400) -> Refused:
    """The exception that ends a check."""
    body = orjson.dumps(error_object(status, message, param=param, code=code), option=orjson.OPT_INDENT_2)
    return Refused(Answer(status, body))


def check_chat(body: JsonObject) -> None:
    """Refuse what /v1/chat/completions refuses, as far as this simulator acts on it."""
    _check_common(body)
    _range(body, "max_completion_tokens", 1, 2**31)
    _check_messages(body)
    _check_tools(body)
    _of(body, "response_format", dict)
    _of(body, "reasoning_effort", str)
    _check_logprobs(body)
    _check_continuation(body)


def _check_logprobs(body: JsonObject) -> None:
    _of(body, "logprobs", bool)
    _range(body, "top_logprobs", 0, _MAX_TOP_LOGPROBS)
    if body.get("top_logprobs") is not None and body.get("logprobs") is not True:
        raise refused("The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", "top_logprobs")


def _check_continuation(body: JsonObject) -> None:
    """The two parameters that vLLM has for a message that the answer goes on from, where a chat template would begin a new one."""
    if not _of(body, "continue_final_message", bool):
        return
    if _of(body, "add_generation_prompt", bool):
        raise refused("Cannot set both `continue_final_message` and `add_generation_prompt` to True.", "continue_final_message")
    if body["messages"][-1]["role"] != "assistant":
        raise refused("'continue_final_message' needs a last message from the assistant.", "continue_final_message")


def _check_messages(body: JsonObject) -> None:
    messages = _of(body, "messages", list)
    if messages is None:
        raise _missing("messages")
    if not messages:
        raise refused("Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty "
                      "array instead.", "messages", "empty_array")
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, dict):
            raise _wrong_type(place, dict, message)
        if message.get("role") not in _ROLES:
            raise refused(f"Invalid value for '{place}.role'. Supported values are: {', '.join(map(repr, _ROLES))}.",
                          f"{place}.role", "invalid_value")
        if not isinstance(message.get("content"), str | list | None):
            raise _wrong_type(f"{place}.content", str, message["content"])


def _check_tools(body: JsonObject) -> None:
    """Tools of other types than `function` pass: this simulator never calls them."""
    for number, tool in enumerate(_of(body, "tools", list) or []):
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise _missing(f"tools[{number}].type")
        if tool["type"] == "function" and not isinstance(_at(tool, "function", "name"), str):
            raise _missing(f"tools[{number}].function.name")
    choice = body.get("tool_choice")
    named = isinstance(choice, dict) and choice.get("type") == "function"
    if named and not isinstance(_at(choice, "function", "name"), str):
        raise _missing("tool_choice.function.name")


def _at(table: Any, outer: str, inner: str) -> Any:
    value = table.get(outer)
    return value.get(inner) if isinstance(value, dict) else None


def check_completions(body: JsonObject) -> None:
    """Refuse what /v1/completions refuses."""
    _check_common(body)
    _check_inputs(body.get("prompt") or "<|endoftext|>", "prompt")  # what OpenAI takes for a missing prompt


def check_embeddings(body: JsonObject) -> None:
    """Refuse what /v1/embeddings refuses."""
    _check_model(body)
    if body.get("input") is None:
        raise _missing("input")
    _check_inputs(body["input"], "input")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise refused("Invalid value for 'encoding_format': expected 'float' or 'base64'.", "encoding_format",
                      "invalid_value")
    _range(body, "dimensions", 1, _MAX_DIMENSIONS)


def _check_inputs(given: Any, name: str) -> None:
    """Text, token numbers, or a list of either, which is not empty and not too long."""
    if given and (isinstance(given, str) or _numbers(given)):
        return
    parts = given if isinstance(given, list) else []
    good = all(part and (isinstance(part, str) or _numbers(part)) for part in parts)
    if not good or not 1 <= len(parts) <= _MAX_INPUTS:
        raise refused(f"'$.{name}' is invalid. Expected text, token numbers, or a list of up to {_MAX_INPUTS} of "
                      "either.", name)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _check_common(body: JsonObject) -> None:
    _check_model(body)
    _range(body, "n", 1, _MAX_CHOICES)
    _range(body, "max_tokens", 1, 2**31)
    _of(body, "seed", int)
    streamed = _of(body, "stream", bool)
    if _of(body, "stream_options", dict) is not None and not streamed:
        raise refused("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")


def _check_model(body: JsonObject) -> None:
    model = _of(body, "model", str)
    if not model:
        raise refused("you must provide a model parameter")
    check_known(model)


def check_known(model: str) -> None:
    """Refuse the models that this provider does not have: all whose names begin with `missing`."""
    if model.startswith("missing"):
        raise refused(f"The model `{model}` does not exist or you do not have access to it.", None, "model_not_found",
                      404)


def _of(body: JsonObject, name: str, kind: type) -> Any:
    value = body.get(name)
    if value is not None and type(value) is not kind:
        raise _wrong_type(name, kind, value)
    return value


def _range(body: JsonObject, name: str, least: int, most: int) -> None:
    value = _of(body, name, int)
    if value is None or least <= value <= most:
        return
    side, code = ("below minimum", "below_min") if value < least else ("above maximum", "above_max")
    raise refused(f"Invalid '{name}': integer {side} value. Expected a value from {least} to {most}, but got {value} "
                  "instead.", name, f"integer_{code}_value")


def _missing(name: str) -> Refused:
    return refused(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")


def _wrong_type(place: str, kind: type, value: Any) -> Refused:
    got = "null" if value is None else _NAMES.get(type(value), "something else")
    return refused(f"Invalid type for '{place}': expected {_NAMES[kind]}, but got {got} instead.", place,
                   "invalid_type")
