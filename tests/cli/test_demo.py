"""`lockgate demo`: it ends well only if what it shows has happened, and leaves a payment waiting on the page where that is asked for."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.cli import demo_approvals
from gateway.cli.demo_approvals import Bank, leave_waiting, show_approval
from gateway.cli.demo_stage import DemoFailed
from gateway.cli.remote import Remote

SOON_S = 120  # it starts a dozen processes


def heed_interrupts() -> None:
    """Whoever runs the tests in the background has interrupts ignored, and so would the demo."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A demo that is left open."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "demo", "--keep", cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)}, preexec_fn=heed_interrupts)
    yield process
    if process.returncode is None:
        process.kill()
    await process.wait()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def line(process: asyncio.subprocess.Process, start: str) -> str:
    """The rest of the line that begins so."""
    assert process.stdout is not None
    seen = b""
    while text := await process.stdout.readline():
        seen += text
        if text.decode().strip().startswith(start):
            return text.decode().strip().removeprefix(start).strip()
    raise AssertionError(seen.decode())


async def test_a_kept_demo_leaves_a_payment_on_the_page_and_tells_what_was_decided(kept: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(SOON_S):
        await line(kept, "approved")
        await line(kept, "All of it happened.")
        page = await line(kept, "page")
        token = await line(kept, "token")
        await line(kept, "Ctrl-C")
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
            async with session.get(page) as answer:
                assert (answer.status, answer.content_type) == (200, "text/html")
            at = page.removesuffix("/-/admin")
            async with session.get(f"{at}/-/approvals") as answer:
                (waiting,) = (await answer.json())["approvals"]
            assert (waiting["rule"], waiting["votes"], waiting["may_vote"]) == ("large-payments", 1, True)
            async with session.post(f"{at}/-/approvals/{waiting['id']}/vote", json={"verdict": "approve", "digest": waiting["digest"]}) as answer:
                assert (await answer.json())["approval"]["state"] == "approved"
            assert "bank.pay" in await line(kept, "Decided:")
        kept.send_signal(signal.SIGINT)
        await line(kept, "The end.")
        assert await kept.wait() == 0
        with pytest.raises(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as session, session.get(page):
                pass


async def test_a_kept_demo_ends_while_its_payment_still_waits(kept: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(SOON_S):
        await line(kept, "Ctrl-C")
        kept.send_signal(signal.SIGINT)
        await line(kept, "The end.")
        assert await kept.wait() == 0


async def test_a_demo_that_is_told_to_end_leaves_nothing_behind(kept: asyncio.subprocess.Process, tmp_path: Path) -> None:
    async with asyncio.timeout(SOON_S):
        page = await line(kept, "page")
        await line(kept, "Ctrl-C")
        assert [name.startswith("lockgate-demo-") for name in names(tmp_path)] == [True]
        kept.terminate()
        assert await kept.wait() == 128 + signal.SIGTERM
        assert names(tmp_path) == []
        with pytest.raises(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as session, session.get(page):
                pass


class ComeBackError(Exception):
    """What the official client raises of a 409."""

    code = "approval_pending"


def test_a_payment_that_nobody_has_decided_on_for_as_long_as_a_connection_is_held_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Future[Any]] = []

    def propose(_bank: Bank, _payment: object) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_exception(ComeBackError("Nobody has decided yet") if len(asked) < 2 else ValueError("denied"))
        asked.append(answer)
        return answer

    class Interrupted:
        def wait(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(Bank, "propose", propose)
    monkeypatch.setattr(Bank, "waiting", lambda _bank, _answer: {"summary": "bank.pay"})
    monkeypatch.setattr(Bank, "vote", lambda _bank, _name, _shown: "pending")
    monkeypatch.setattr(demo_approvals, "Event", Interrupted)
    with ThreadPoolExecutor(1) as threads:
        leave_waiting(Bank(None, threads, "http://127.0.0.1:1", "key", {}, ""), "token")
    told = capsys.readouterr().out
    assert (len(asked), "Decided: the client got ValueError: denied" in told, "Nobody has decided" in told) == (3, True, False)


class Answered:
    """A client whose model is answered at once, whatever rules say."""

    def __getattr__(self, _name: str) -> "Answered":
        return self

    def create(self, **_given: Any) -> None:
        return None


@pytest.mark.parametrize("scene", [show_approval, lambda bank: leave_waiting(bank, "token")])
def test_a_payment_that_waits_for_nobody_is_a_failure_of_the_demo(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Remote, "get", lambda _self, _path: {"approvals": []})
    with ThreadPoolExecutor(1) as threads:
        bank = Bank(Answered(), threads, "http://127.0.0.1:1", "key", {"ada": "a", "grace": "g"}, "http://127.0.0.1:1/v1")
        with pytest.raises(DemoFailed, match="waits for people"):
            scene(bank)
