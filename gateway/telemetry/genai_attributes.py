"""The names of span attributes. Those of the GenAI conventions are still in development, so they stand here alone.

Source: OpenTelemetry semantic conventions, GenAI registry (`gen_ai.*`), HTTP and error attributes. Names of our own
begin with `lockgate.`.
"""

from collections.abc import Mapping
from typing import Final

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
TOOL: Final = "gen_ai.tool.name"
REQUEST_STREAM: Final = "gen_ai.request.stream"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
CONVERSATION: Final = "gen_ai.conversation.id"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
HTTP_STATUS: Final = "http.response.status_code"
ERROR_TYPE: Final = "error.type"

CALL: Final = "lockgate.call.id"
KEY: Final = "lockgate.key.id"
TEAM: Final = "lockgate.team"
ROUTE: Final = "lockgate.route"
OUTCOME: Final = "lockgate.outcome"
DECISION: Final = "lockgate.decision"
RULE: Final = "lockgate.rule"
BUNDLE: Final = "lockgate.bundle"
RUN: Final = "lockgate.run"
STEP: Final = "lockgate.step"
COST: Final = "lockgate.cost_usd"
ESTIMATED: Final = "lockgate.usage.estimated"
RESERVED: Final = "lockgate.reserved_usd"
ACCOUNT: Final = "lockgate.budget.account"
ATTEMPTS: Final = "lockgate.attempts"
ATTEMPT: Final = "lockgate.attempt.n"
ATTEMPT_END: Final = "lockgate.attempt.end"
WAITED: Final = "lockgate.attempt.waited_s"
WHY: Final = "lockgate.attempt.why"
BREAKER: Final = "lockgate.attempt.breaker"
RETRIES_LEFT: Final = "lockgate.attempt.retries_left"
LARGEST_GAP: Final = "lockgate.attempt.largest_gap_s"
TASK: Final = "lockgate.task"
PART_OF: Final = "lockgate.part_of"

# Where the conventions have another word than we.
OPERATIONS: Final[Mapping[str, str]] = {"completions": "text_completion", "tool": "execute_tool"}

CALL_ATTRIBUTES: Final[Mapping[str, str]] = {
    OPERATION: "`chat`, `text_completion`, `embeddings` or `execute_tool`.",
    REQUEST_MODEL: "The model's name as the caller gave it; absent where a tool is called.",
    TOOL: "The tool's name as the caller gave it; absent where a model is called.",
    REQUEST_STREAM: "Whether the caller asked for a stream.",
    FINISH_REASONS: "Why the model stopped, one entry a choice.",
    TIME_TO_FIRST_CHUNK: "Seconds from the call's arrival to the provider's first byte.",
    CONVERSATION: "`X-Lockgate-Session`.",
    INPUT_TOKENS: "Tokens in, cached and audio ones too.",
    OUTPUT_TOKENS: "Tokens out, reasoning and audio ones too.",
    CACHE_READ_TOKENS: "Of the tokens in, those read from a cache; absent where 0.",
    CACHE_WRITE_TOKENS: "Of the tokens in, those written to a cache; absent where 0.",
    REASONING_TOKENS: "Of the tokens out, those of reasoning; absent where 0.",
    HTTP_STATUS: "The status given to the caller.",
    ERROR_TYPE: "The error code given to the caller; absent on success.",
    CALL: "The call id.",
    KEY: "The public id of the virtual key.",
    TEAM: "The key's team.",
    ROUTE: "The route, where there is one of that name.",
    OUTCOME: "How the call ended.",
    DECISION: "`allow`, `held` or `deny`, before anything was sent.",
    RULE: "The rule that decided.",
    BUNDLE: "The digest of the rules in force.",
    RUN: "`X-Lockgate-Run`.",
    STEP: "`X-Lockgate-Step`.",
    COST: "What it cost in USD, an exact decimal string; absent where unknown.",
    ESTIMATED: "True where tokens and cost are upper bounds of ours, because a provider did not say; absent otherwise.",
    RESERVED: "What was set aside for it in USD; absent where no budget bound it.",
    ACCOUNT: "The account whose budget refused the call or the rest of its answer; absent where none did.",
    ATTEMPTS: "How many attempts were made.",
    TASK: "What a classifier, or a default of its, took the call for; absent where the route asks none.",
    PART_OF: "The call that this one was made for by the gateway itself, as a mirror's copy, a classifier's question or a read that "
             "verifies what came of it; else absent.",
}

ATTEMPT_ATTRIBUTES: Final[Mapping[str, str]] = {
    OPERATION: "As on the call.",
    PROVIDER: "The provider's name in the configuration.",
    REQUEST_MODEL: "The model's name at the provider.",
    TIME_TO_FIRST_CHUNK: "Seconds from the attempt's start to the provider's first byte.",
    INPUT_TOKENS: "As on the call.",
    OUTPUT_TOKENS: "As on the call.",
    CACHE_READ_TOKENS: "As on the call.",
    CACHE_WRITE_TOKENS: "As on the call.",
    REASONING_TOKENS: "As on the call.",
    HTTP_STATUS: "The provider's status.",
    ERROR_TYPE: "Why the attempt failed, such as `connect`, `timeout:headers` or `status:503`; absent on success.",
    ATTEMPT: "Which attempt of the call this was, from 1.",
    ATTEMPT_END: "`succeeded`, `failed`, `rejected`, `cut` or `cancelled`.",
    WAITED: "Seconds waited before it.",
    WHY: "`retry`, `fallback`, `hedge`, `cascade` or `continuation`; absent on the first.",
    BREAKER: "The state of the target's breaker: `closed`, `half_open`, `forced_closed`, or `last_resort` where it was tried "
             "although it was open.",
    RETRIES_LEFT: "What the route's retry budget held once this attempt was taken from it; absent where it was not.",
    LARGEST_GAP: "The longest time between two pieces of its stream, in seconds; absent where there is none.",
    COST: "What the attempt cost in USD, an exact decimal string; absent where unknown.",
    ESTIMATED: "As on the call.",
}
