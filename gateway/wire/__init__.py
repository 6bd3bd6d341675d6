"""What an adapter may use of the engine: the protocols, the nouns, the decoders and the errors. Adapters import nothing else."""

from gateway.call import Call, JsonObject, Principal, Reply, Target, Usage
from gateway.errors import AttemptFailed, BudgetExceeded, CallError, Forbidden, InvalidRequest, OfApproval, RateLimited, UpstreamRejected
from gateway.secret import Secret
from gateway.wire.protocol import (
    Adapter,
    Ask,
    Dialect,
    Endpoint,
    Event,
    StreamDecoder,
    StreamEncoder,
    UpstreamRequest,
)
from gateway.wire.sse import ServerSentEvent, SseDecoder
from gateway.wire.strict_json import dumps, loads

__all__ = [
    "Adapter",
    "Ask",
    "AttemptFailed",
    "BudgetExceeded",
    "Call",
    "CallError",
    "Dialect",
    "Endpoint",
    "Event",
    "Forbidden",
    "InvalidRequest",
    "JsonObject",
    "OfApproval",
    "Principal",
    "RateLimited",
    "Reply",
    "Secret",
    "ServerSentEvent",
    "SseDecoder",
    "StreamDecoder",
    "StreamEncoder",
    "Target",
    "UpstreamRejected",
    "UpstreamRequest",
    "Usage",
    "dumps",
    "loads",
]
