"""Several worker processes share a port, so whichever answers `/metrics` must speak for all of them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

PROGRAM = Path(__file__).with_name("metrics_worker.py")
REPOSITORY = PROGRAM.parents[2]


class Worker:
    """A real process that counts calls."""

    def __init__(self, folder: Path) -> None:
        environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(REPOSITORY)}
        self.process = subprocess.Popen([sys.executable, PROGRAM], env=environ, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)

    def __call__(self, command: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        shown = []
        while (line := self.process.stdout.readline()) != "end\n":
            assert line, "the worker died"
            shown.append(line)
        return "".join(shown)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    workers: list[Worker] = []

    def make() -> Worker:
        workers.append(Worker(tmp_path))
        return workers[-1]

    yield make
    for made in workers:
        made.kill()


def samples(text: str) -> Mapping[tuple[str, ...], float]:
    return {(sample.name, *(value for _name, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


CALLS = ("lockgate_calls_total", "", "completed", "small", "")


def test_every_worker_shows_the_sum_of_all(worker):
    one, two = worker(), worker()
    one("calls 3")
    two("calls 4")
    one("in_flight 2")
    two("in_flight 5")
    for asked in (one, two):
        seen = samples(asked("render"))
        assert seen[CALLS] == 7
        assert seen["lockgate_call_duration_seconds_count", "completed", "small"] == 7
        assert seen["lockgate_call_duration_seconds_bucket", "0.1", "completed", "small"] == 7
        assert seen["lockgate_in_flight_calls",] == 7


def test_what_a_dead_worker_counted_stays_and_what_it_had_in_flight_goes(worker):
    one, two = worker(), worker()
    one("calls 3")
    one("in_flight 2")
    one.kill()
    two("calls 1")
    two(f"forget {one.process.pid}")
    seen = samples(two("render"))
    assert seen[CALLS] == 4
    assert seen["lockgate_in_flight_calls",] == 0


def test_a_reload_that_has_not_reached_every_worker_shows_both_bundles(worker):
    one, two = worker(), worker()
    one("rules sha256:bb")
    assert samples(two("render"))["lockgate_info", "sha256:aa", "0.1.0"] == 1
    two("rules sha256:bb")
    seen = samples(two("render"))
    assert seen["lockgate_info", "sha256:aa", "0.1.0"] == 0
    assert seen["lockgate_info", "sha256:bb", "0.1.0"] == 1


def test_one_worker_that_could_not_load_the_files_shows_for_all_until_it_is_gone(worker):
    one, two = worker(), worker()
    one("reload failed")
    two("reload ok")
    assert samples(two("render"))["lockgate_config_stale",] == 1
    one.kill()
    two(f"forget {one.process.pid}")
    assert samples(two("render"))["lockgate_config_stale",] == 0


def test_a_hosts_own_metrics_in_the_same_folder_are_not_ours(worker, tmp_path):
    """An embedded gateway runs inside an application that may count things of its own."""
    code = "from prometheus_client import Counter\nCounter('host_secret_total', 'x').inc()"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, check=True)
    one = worker()
    one("calls 1")
    assert "host_secret" not in one("render")
