"""A provider that behaves, or misbehaves, as told. It stands alone: nothing here imports the engine."""

from gateway.simulator.app import build_simulator
from gateway.simulator.faults import Fault
from gateway.simulator.log import Entry, RequestLog, fingerprint
from gateway.simulator.scenario import FaultRule, Match, Scenario, read_scenario
from gateway.simulator.server import Simulator

__all__ = ["Entry", "Fault", "FaultRule", "Match", "RequestLog", "Scenario", "Simulator", "build_simulator",
           "fingerprint", "read_scenario"]
