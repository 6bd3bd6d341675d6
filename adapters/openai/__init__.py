"""OpenAI's API: the dialect its clients speak, and the adapter for every upstream that is compatible with it."""

from collections.abc import Iterable, Mapping
from typing import Final

from gateway.wire import (
    Adapter,
    Ask,
    AttemptFailed,
    Call,
    CallError,
    Dialect,
    Endpoint,
    JsonObject,
    Reply,
    Secret,
    StreamDecoder,
    StreamEncoder,
    Target,
    UpstreamRejected,
    UpstreamRequest,
    dumps,
)

from . import request, response, stream, wire


class OpenAIAdapter:
    """Speaks to OpenAI and what is compatible with it (llama.cpp, vLLM, Ollama, …). Base URLs end in `/v1`."""

    name = "openai"
    operations = frozenset(wire.PATHS)

    def encode(self, call: Call, target: Target, api_key: Secret | None) -> UpstreamRequest:
        return request.encode(call, target, api_key)

    def decode(self, call: Call, body: bytes) -> Reply:
        return response.decode(call, body)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> AttemptFailed | UpstreamRejected:
        return response.decode_error(status, headers, body)

    def decoder(self, call: Call) -> StreamDecoder:
        return stream.OpenAIStreamDecoder(call)

    def health(self, path: str, api_key: Secret | None) -> UpstreamRequest:
        return request.health(path, api_key)


class OpenAIDialect:
    """Speaks to clients of OpenAI's API as its SDKs read and write it."""

    name = "openai"
    endpoints = (
        *(Endpoint("POST", f"/v1{path}", operation) for operation, path in wire.PATHS.items()),
        Endpoint("GET", "/v1/models", "models"),
    )
    stream_content_type = "text/event-stream"

    def read(self, operation: str, body: JsonObject) -> Ask:
        return request.read(operation, body)

    def answer(self, call: Call, reply: Reply) -> bytes:  # noqa: ARG002 - the canonical form is this API's own
        return dumps(reply.body)

    def error(self, error: CallError, call_id: str) -> bytes:
        return response.error_body(error, call_id)

    def models(self, routes: Iterable[str]) -> bytes:
        return response.models(routes)

    def encoder(self, call: Call) -> StreamEncoder:
        return stream.OpenAIStreamEncoder(call)


ADAPTER: Final[Adapter] = OpenAIAdapter()
DIALECT: Final[Dialect] = OpenAIDialect()
