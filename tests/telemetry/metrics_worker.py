"""A worker process for `test_worker_metrics.py`: does what it reads on standard input, one command a line.

`calls N`, `in_flight N`, `rules DIGEST`, `reload ok|failed`, `forget PID`, `render` (prints what `/metrics` would show, then a line `end`).
"""

import sys

from gateway.call import CallRecord, Origin, Outcome, Principal
from gateway.telemetry.metrics import Metrics, forget_worker

RECORD = CallRecord(
    id="call_01", principal=Principal(id="key_01"), dialect="openai", operation="chat", route="small", stream=False,
    origin=Origin(), received_ns=0, ended_ns=100_000_000, outcome=Outcome.COMPLETED, status=200,
)


def main() -> None:
    """Work until standard input ends."""
    metrics = Metrics("0.1.0")
    metrics.serving("sha256:aa", {"small": "small", "little": "small"})
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "calls":
            for _ in range(int(argument)):
                metrics.count(RECORD)
        elif command == "in_flight":
            metrics.in_flight(int(argument))
        elif command == "reload":
            metrics.reloaded(ok=argument == "ok")
        elif command == "rules":
            metrics.serving(argument, {"small": "small", "little": "small"})
        elif command == "forget":
            forget_worker(int(argument))
        elif command == "render":
            sys.stdout.write(metrics.render().decode())
        sys.stdout.write("end\n")
        sys.stdout.flush()


main()
