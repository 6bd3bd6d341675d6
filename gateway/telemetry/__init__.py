"""What is seen of a gateway from outside: log lines, metrics and spans, made from the record of a call, after it."""

from gateway.telemetry.metrics import METRICS_CONTENT_TYPE, RuleCounts, forget_worker
from gateway.telemetry.pipeline import Telemetry, fd_writer
from gateway.telemetry.settings import OtlpSettings

__all__ = ["METRICS_CONTENT_TYPE", "OtlpSettings", "RuleCounts", "Telemetry", "fd_writer", "forget_worker"]
