"""`lockgate simulate`: the simulated provider as a process."""

from pathlib import Path

import click

from gateway.cli.process import allow_descriptors, run_loop, settle_memory
from gateway.clock import SystemClock
from gateway.simulator import RequestLog, Scenario, Simulator, read_scenario
from gateway.simulator.server import run

_CONNECTIONS = 1024  # what it may hold open at least; it takes what the system allows


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on. The control endpoints ask for no key.")
@click.option("--port", default=9090, show_default=True, type=click.IntRange(0, 65535),
              help="Port to listen on; 0 for any free one.")
@click.option("--scenario", "scenario_path", type=click.Path(path_type=Path),
              help="TOML file that says when to misbehave, and how.")
@click.option("--log", "log_path", type=click.Path(path_type=Path),
              help="File to append a JSON line to for every request.")
@click.option("--keep", default=100_000, show_default=True, type=click.IntRange(0),
              help="Requests to remember for /sim/log.")
@click.option("--api-key", help="The one key to accept; without it every key is.")
def simulate(host: str, port: int, scenario_path: Path | None, log_path: Path | None, keep: int,
             api_key: str | None) -> None:
    """Run a provider that behaves, or misbehaves, as told.

    It speaks OpenAI's API on /v1 and prints its address when it is ready. See docs/simulator.md.
    """
    scenario = Scenario() if scenario_path is None else read_scenario(scenario_path)
    allow_descriptors(_CONNECTIONS)
    settle_memory()
    with RequestLog(SystemClock(), keep=keep, path=log_path) as log:
        simulator = Simulator(scenario, host=host, port=port, api_key=api_key, log=log)
        run_loop(run(simulator, lambda url: click.echo(f"simulator ready on {url}")))
