"""A provider that behaves, or misbehaves, as told. It stands alone: nothing here imports the engine."""

from gateway.simulator.faults import Fault
from gateway.simulator.log import Entry, RequestLog, fingerprint
from gateway.simulator.match import Match
from gateway.simulator.scenario import FaultRule, Scenario, read_scenario
from gateway.simulator.server import Simulator
from gateway.simulator.timeline import Timeline, TimelineStep

__all__ = ["Entry", "Fault", "FaultRule", "Match", "RequestLog", "Scenario", "Simulator", "Timeline", "TimelineStep", "fingerprint",
           "read_scenario"]
