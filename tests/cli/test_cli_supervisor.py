"""What a supervisor does with one worker whom it lets go: patience with a bound, and no word of it counts any more."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.cli import supervisor
from gateway.cli.supervisor import Attached, Supervisor
from gateway.cli.tie import Tie
from gateway.deployment import read_deployment
from gateway.errors import SetupError

SOON_S = 20
CONFIG = '[providers.one]\nadapter = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n'
DEAF = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); sys.stdin.read()"


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Tie, Tie]]:
    one, two = [await Tie.hold(each) for each in socket.socketpair()]
    yield one, two
    one.cut()
    two.cut()


@pytest.fixture
def supervising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # it sets its own, for its workers
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_named: str(tmp_path))
    (tmp_path / "config.toml").write_text(CONFIG)
    for folder in ("routes", "policies"):
        (tmp_path / folder).mkdir()
    (tmp_path / "routes/routes.toml").write_text('[[route]]\nname = "fast"\ntargets = [{ provider = "one", model = "m" }]\n')
    with socket.socket() as sock:
        yield Supervisor(sock, read_deployment(tmp_path / "config.toml"), 2)


async def test_a_worker_that_does_not_end_in_its_time_is_killed(supervising, ends, monkeypatch, capsys):
    monkeypatch.setattr(supervisor, "_GRACE_S", 0.1)
    here, there = ends
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DEAF, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readline(), SOON_S)
    supervising._attached[process.pid] = Attached(process.pid, here, drain_s=0.1)
    await asyncio.wait_for(supervising._dismiss(process), SOON_S)
    await asyncio.wait_for(process.communicate(), SOON_S)
    assert process.returncode == -9
    assert "killed" in capsys.readouterr().err
    assert await asyncio.wait_for(there.receive(), SOON_S) is None
    assert supervising._attached == {}
    await asyncio.wait_for(supervising._dismiss(process), SOON_S)  # one that is gone already is no matter


async def test_a_worker_that_is_not_ready_in_its_time_is_killed_and_it_is_said(supervising, monkeypatch):
    monkeypatch.setattr(supervisor, "_READY_S", 0.01)
    with pytest.raises(SetupError, match=r"not ready within 0\.01 s and was killed"):
        await asyncio.wait_for(supervising._start(), SOON_S)
    assert supervising._processes == set()


@pytest.mark.parametrize(("code", "told"), [(0, "what it said stands above"), (1, "what it said stands above"), (-9, "SIGKILL"), (-40, "signal 40")])
def test_it_is_said_why_a_worker_did_not_start(code, told):
    assert told in supervisor._why_not_started(code)


async def test_a_worker_that_was_dismissed_is_left_out_of_the_reports_and_one_that_died_is_not(supervising, ends):
    here, there = ends
    leaving, dead = Attached(7, here, 30.0), Attached(8, here, 30.0, gone=True)
    listening = asyncio.create_task(leaving.listen(lambda _question: None))
    supervising._attached = {7: leaving, 8: dead}
    reports = asyncio.create_task(supervising._reload_all())
    async with asyncio.timeout(SOON_S):
        while not leaving.waiting:
            await asyncio.sleep(0)
    leaving.dismissed = True
    there.cut()  # it was told to stop before it had an answer
    assert [report["pid"] for report in await asyncio.wait_for(reports, SOON_S)] == [8]
    assert [report["pid"] for report in await supervising._reload_all()] == [8]
    await asyncio.wait_for(listening, SOON_S)
