"""How often each rule has contributed, as `/-/rules` tells it."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from gateway.telemetry.metrics import Metrics

REPOSITORY = Path(__file__).parents[2]
# A worker that has counted a match, and says what all workers have.
WORKER = """
from gateway.telemetry.metrics import Metrics
metrics = Metrics("0.1.0")
metrics._count_rules([{"rule": "a", "effect": "deny", "verdict": "matched"}])
print(metrics.rule_counts()["a", "enforce"]["matched"])
"""


def test_rules_are_counted_by_mode_and_verdict_over_all_phases(record):
    metrics = Metrics("0.1.0")
    assert metrics.rule_counts() == {}
    reasons = ({"rule": "a", "effect": "deny", "verdict": "matched"}, {"rule": "b", "effect": "log", "verdict": "error", "shadow": True},
               {"rule": "c", "effect": "log", "verdict": "not_matched"})
    verdicts = ({"phase": "tool_call", "decision": "allow", "rule": "", "reasons": [{"rule": "a", "effect": "set", "verdict": "matched"}]},)
    metrics.count(replace(record, reasons=reasons, verdicts=verdicts))
    assert metrics.rule_counts() == {("a", "enforce"): {"matched": 2}, ("b", "shadow"): {"error": 1}}


def test_every_worker_tells_what_all_of_them_have_counted(tmp_path):
    def work() -> str:
        return subprocess.run([sys.executable, "-c", WORKER], cwd=REPOSITORY, env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
                              capture_output=True, text=True, timeout=60, check=True).stdout

    assert [work(), work(), work()] == ["1\n", "2\n", "3\n"]
