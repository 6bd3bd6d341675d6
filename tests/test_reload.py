"""Changed files are put in force whole or not at all, and whatever goes wrong leaves what was in force and is told."""

import asyncio
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway import reload as reloading
from gateway.clock import SystemClock
from gateway.deployment import read_deployment
from gateway.errors import ConfigError, LockgateError, StoreUnavailable
from gateway.reload import Fresh, Reloader, load
from gateway.secret import Secret
from gateway.snapshot import Snapshot
from gateway.store.scrub import Scrubber

CONFIG = """
[providers.one]
adapter = "openai"
base_url = "http://127.0.0.1:1/v1"
api_key = "env:KEY"
[auth]
pepper = "file:secrets/pepper"
[store]
path = ":memory:"
"""
ROUTE = '[[route]]\nname = "{}"\n[[route.targets]]\nprovider = "one"\nmodel = "m"\n'
RULE = '[[rule]]\nid = "{}"\neffect = "log"\n'
ENVIRON = {"KEY": "sk-provider-key-0123456789", "OTHER": "x" * 20}
SOON_S = 20


@dataclass
class Places:
    """Everything that a reload touches, as one recorder: `said` in order, so that what comes before what can be seen."""

    said: list[tuple[str, Any]] = field(default_factory=list)
    fails: Exception | None = None

    async def keep(self, digest: str, content: bytes, *, now_ns: int) -> None:
        assert digest
        assert content
        assert now_ns > 0
        if self.fails is not None:
            raise self.fails
        self.said.append(("kept", digest))

    async def content(self, digest: str) -> bytes | None:
        raise NotImplementedError(digest)

    def swap(self, snapshot: Snapshot) -> None:
        self.said.append(("swapped", snapshot))

    def reloaded(self, *, ok: bool) -> None:
        self.said.append(("counted", ok))

    def event(self, level: str, name: str, **fields: object) -> None:
        self.said.append((name, {"level": level, **fields}))

    def told(self, name: str) -> list[Any]:
        return [what for each, what in self.said if each == name]


class House:
    """A deployment folder, and a reloader of what stands in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("routes", "policies", "adapters", "secrets"):
            (folder / name).mkdir()
        self.write("config.toml", CONFIG)
        self.write("routes/r.toml", ROUTE.format("fast"))
        self.write("policies/p.toml", RULE.format("one"))
        self.write("secrets/pepper", "pepper-of-the-tests")
        self.environ = dict(ENVIRON)
        self.places = Places()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(text)

    def open(self) -> Reloader:
        loaded = load(read_deployment(self.folder / "config.toml"), self.environ)
        self.digest = loaded.snapshot.bundle.digest
        places: Any = self.places
        return Reloader(loaded, places.swap, bundles=places, telemetry=places, clock=SystemClock())


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_changed_files_are_in_force_after_a_reload(house):
    reloader = house.open()
    house.write("policies/p.toml", RULE.format("two") + RULE.format("three"))
    house.write("policies/lists/x.txt", "a")
    house.write("routes/more.toml", ROUTE.format("slow"))
    house.write("config.toml", CONFIG + '[journal]\nbodies = "none"\n[policy]\nwait = "1s"\n[prices."one/m"]\ninput = "1.00"\noutput = "2.00"\n')
    house.environ["KEY"] = "sk-another-key-0123456789"
    done = await reloader.reload()
    [snapshot] = house.places.told("swapped")
    assert done.bundle == snapshot.bundle.digest != house.digest
    assert (done.rules, done.routes, done.restart) == (2, 2, ())
    assert [rule.id for rule in snapshot.bundle.rules] == ["two", "three"]
    assert list(snapshot.routes) == ["slow", "fast"] or list(snapshot.routes) == ["fast", "slow"]
    assert (snapshot.config.journal.bodies, snapshot.config.policy.wait) == ("none", 1.0)
    assert snapshot.routes["fast"].targets[0].price is not None
    assert snapshot.providers["one"].api_key == Secret("sk-another-key-0123456789")
    assert [name for name, _ in house.places.said] == ["kept", "swapped", "counted", "reloaded"]
    assert reloader.stale == ""


def break_toml(house: House) -> None:
    house.write("policies/p.toml", "[[rule]\n")


def break_rule(house: House) -> None:
    house.write("policies/p.toml", RULE.format("a") + 'when = "request.modle == 1"\n')


def break_secret(house: House) -> None:
    house.environ.pop("KEY")


def break_secret_file(house: House) -> None:
    (house.folder / "secrets/pepper").unlink()


def break_case(house: House) -> None:
    house.write("policies/p.cases.toml", '[[case]]\nname = "nothing is denied"\nexpect = { effect = "deny" }\n')


def break_adapter(house: House) -> None:
    house.write("adapters/broken.py", "raise ValueError('no')\n")
    house.write("config.toml", CONFIG.replace('"openai"', '"broken"'))


def break_config(house: House) -> None:
    house.write("config.toml", CONFIG + "[unknown]\n")


def remove_config(house: House) -> None:
    (house.folder / "config.toml").unlink()


def remove_rules(house: House) -> None:
    (house.folder / "policies/p.toml").unlink()
    (house.folder / "policies").rmdir()


def break_list(house: House) -> None:
    house.write("policies/lists/x.txt", "")
    (house.folder / "policies/lists/x.txt").write_bytes(b"\xff")


@pytest.mark.parametrize(("breaks", "place"), [
    (break_toml, "policies/p.toml:1"), (break_rule, "policies/p.toml:4:rule[0].when"), (break_secret, "config.toml:5:providers.one.api_key"),
    (break_secret_file, "config.toml:7:auth.pepper"), (break_case, "policies/p.cases.toml:3:case[0].expect"),
    (break_adapter, "broken.py:1"), (break_config, "config.toml:10:unknown"), (remove_config, "config.toml"), (remove_rules, "config.toml"),
    (break_list, "policies/lists/x.txt"),
])
async def test_files_that_cannot_be_used_change_nothing_and_are_told(house, breaks, place):
    reloader = house.open()
    breaks(house)
    with pytest.raises(ConfigError) as caught:
        await reloader.reload()
    assert [name for name, _ in house.places.said] == ["counted", "reload_failed"]
    assert house.places.told("counted") == [False]
    [event] = house.places.told("reload_failed")
    assert event == {"level": "error", "error": caught.value.message, "in_force": house.digest}
    assert reloader.stale.startswith(f"stale: {place}")


@pytest.mark.parametrize("breaks", [break_toml, break_rule, break_secret_file, break_adapter, remove_config])
async def test_what_anybody_may_read_names_no_path_of_the_machine_and_quotes_no_file(house, breaks):
    reloader = house.open()
    breaks(house)
    with pytest.raises(ConfigError):
        await reloader.reload()
    assert str(house.folder) not in reloader.stale
    assert "modle" not in reloader.stale
    assert reloader.stale.endswith("; `lockgate check` says what is wrong")


async def test_how_much_more_is_wrong_is_told(house):
    reloader = house.open()
    house.write("config.toml", CONFIG + "[a]\n[b]\n[c]\n")
    with pytest.raises(ConfigError):
        await reloader.reload()
    assert "config.toml:10:a and 2 more;" in reloader.stale


async def test_once_the_files_are_right_again_nothing_is_stale(house):
    reloader = house.open()
    break_toml(house)
    with pytest.raises(ConfigError):
        await reloader.reload()
    house.write("policies/p.toml", RULE.format("two"))
    await reloader.reload()
    assert reloader.stale == ""
    assert house.places.told("counted") == [False, True]


async def test_rules_that_the_store_cannot_keep_are_not_put_in_force(house):
    """No decision under them could be explained."""
    reloader = house.open()
    house.write("policies/p.toml", RULE.format("two"))
    house.places.fails = StoreUnavailable("the disk at /srv/private is full")
    with pytest.raises(StoreUnavailable):
        await reloader.reload()
    assert house.places.told("swapped") == []
    assert reloader.stale == "stale: the store could not keep the rules; the log says why"
    assert (await reloader.report())["code"] == "store_unavailable"


async def test_a_defect_changes_nothing_and_is_told(house, monkeypatch):
    reloader = house.open()

    def defect(*_arguments: object, **_options: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(reloading, "compile_snapshot", defect)
    with pytest.raises(ZeroDivisionError):
        await reloader.reload()
    assert house.places.told("swapped") == []
    assert reloader.stale == "stale: a defect; see the log"
    assert house.places.told("reload_failed")[0]["error"] == "ZeroDivisionError: inside"


@pytest.mark.parametrize(("setting", "name"), [
    ("[server]\nport = 1", "server.port"), ("[server]\nmax_in_flight = 7", "server.max_in_flight"), ('[server]\nmax_body = "1KiB"', "server.max_body"),
    ('[paths]\nroutes = "other"', "paths.routes"), ('[upstream]\ntransport = "aiohttp"', "upstream.transport"),
    ('[admin]\ntoken = "env:OTHER"', "admin.token"), ('[log]\nlevel = "debug"', "log.level"),
    ('[otlp]\nheaders = { a = "env:OTHER" }', "otlp.headers"), ("[policy]\nwatch = false", "policy.watch"),
    ("[approvals]\nmax_held = 7", "approvals.max_held"),
])
async def test_what_only_a_restart_changes_stays_and_is_named(house, setting, name):
    reloader = house.open()
    before = read_deployment(house.folder / "config.toml").config
    house.write("config.toml", CONFIG + setting + "\n")
    house.write("policies/p.toml", RULE.format("two"))
    done = await reloader.reload()
    [snapshot] = house.places.told("swapped")
    assert done.restart == (name,)
    assert house.places.told("restart_needed") == [{"level": "warning", "settings": name}]
    section = name.partition(".")[0]
    assert getattr(snapshot.config, section) == getattr(before, section)
    assert (snapshot.admin_token, dict(snapshot.otlp_headers)) == (None, {})
    assert [rule.id for rule in snapshot.bundle.rules] == ["two"]  # the rest is in force
    assert (await reloader.reload()).restart == (name,)  # and it stays to be said


async def test_a_secret_that_is_read_at_the_start_stays_what_it_was(house):
    """Another pepper would make every key unknown."""
    reloader = house.open()
    house.write("secrets/pepper", "another-pepper-0123456789")
    assert (await reloader.reload()).restart == ("auth.pepper",)
    [snapshot] = house.places.told("swapped")
    assert snapshot.pepper == Secret("pepper-of-the-tests")
    house.write("secrets/pepper", "pepper-of-the-tests")
    assert (await reloader.reload()).restart == ()


async def test_rules_and_routes_are_read_from_the_folders_of_the_start(house):
    reloader = house.open()
    house.write("config.toml", CONFIG + '[paths]\npolicies = "other"\nroutes = "gone"\nadapters = "elsewhere"\n')
    house.write("other/p.toml", RULE.format("wrong"))
    done = await reloader.reload()
    assert done.restart == ("paths.policies", "paths.routes", "paths.adapters")
    [snapshot] = house.places.told("swapped")
    assert ([rule.id for rule in snapshot.bundle.rules], list(snapshot.routes)) == (["one"], ["fast"])
    assert snapshot.config.paths.policies == "policies"


async def test_what_would_fail_at_the_next_start_fails_now(house):
    """A setting that a restart will read is checked as the rest: better now than at three in the morning."""
    reloader = house.open()
    house.write("config.toml", CONFIG + '[admin]\ntoken = "env:NOT_SET"\n')
    with pytest.raises(ConfigError, match="NOT_SET is not set"):
        await reloader.reload()


def test_files_with_a_failing_case_do_not_start(house):
    break_case(house)
    with pytest.raises(ConfigError, match=r"policies/p\.cases\.toml:3"):
        house.open()


async def test_a_report_names_what_is_in_force_or_every_problem(house):
    reloader = house.open()
    report = await reloader.report()
    assert (report["ok"], report["bundle"], report["rules"], report["routes"], report["tools"], report["restart"]) == (
        True, house.digest, 1, 1, 0, ())
    house.write("config.toml", CONFIG + "".join(f"[a{number}]\n" for number in range(60)))
    report = await reloader.report()
    assert (report["ok"], report["code"], len(report["problems"]), len(report["message"])) == (False, "config_error", 50, 2000)
    assert report["problems"][0] == {"file": "config.toml", "line": 10, "key": "a0", "message": "unknown key", "hint": report["problems"][0]["hint"]}


async def test_calls_go_on_while_files_are_loaded(house, monkeypatch):
    reloader = house.open()
    reading, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        reading.set()
        assert go_on.wait(SOON_S)
        return read_deployment(*arguments, **options)

    monkeypatch.setattr(reloading, "read_deployment", slow)
    task = asyncio.create_task(reloader.reload())
    assert await asyncio.to_thread(reading.wait, SOON_S)
    for _ in range(10):
        await asyncio.sleep(0)  # the loop turns
    assert not task.done()
    go_on.set()
    await asyncio.wait_for(task, SOON_S)


async def test_what_is_no_longer_in_force_is_not_kept_in_memory(house):
    def alive() -> int:
        gc.collect()
        return sum(type(each) is Snapshot for each in gc.get_objects())

    reloader = house.open()
    before = alive()
    for number in range(5):
        house.write("policies/p.toml", RULE.format(f"r{number}"))
        await reloader.reload()
        house.places.said.clear()
    assert alive() == before


def test_what_scrubs_learns_the_new_secrets_and_remembers_the_old():
    scrubber = Scrubber([Secret("the-old-secret")])
    text, data = scrubber.text, scrubber.bytes  # as others hold it
    scrubber.learn([Secret("the-new-secret"), Secret("short")])
    assert text("the-old-secret the-new-secret short") == "[secret] [secret] short"
    assert data(b"the-old-secret the-new-secret") == b"[secret] [secret]"
    assert text("cut at its end: the-new-secr") == "cut at its end: [secret]"
    scrubber.learn([Secret("the-new-secret")])
    assert repr(scrubber) == "Scrubber(2 values)"


class Work:
    """Work that runs until it is let go, and counts."""

    def __init__(self) -> None:
        self.begun = 0
        self.at_once = 0
        self.go_on = asyncio.Semaphore(0)
        self.fails: LockgateError | None = None

    async def __call__(self) -> int:
        self.begun += 1
        number = self.begun
        self.at_once += 1
        assert self.at_once == 1
        try:
            await self.go_on.acquire()
            if self.fails is not None:
                raise self.fails
        finally:
            self.at_once -= 1
        return number


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0)


async def test_who_asks_while_it_runs_gets_a_run_that_began_after_and_shares_it():
    """The run that is under way may have read a file before it was changed."""
    work = Work()
    fresh = Fresh(work)
    first = asyncio.create_task(fresh())
    await until(lambda: work.begun == 1)
    others = [asyncio.create_task(fresh()) for _ in range(5)]
    await asyncio.sleep(0)
    work.go_on.release()
    assert await first == 1
    await until(lambda: work.begun == 2)
    late = asyncio.create_task(fresh())
    await asyncio.sleep(0)
    work.go_on.release()
    assert await asyncio.gather(*others) == [2] * 5
    work.go_on.release()
    assert await late == 3


async def test_a_run_that_fails_fails_for_those_who_waited_for_it_alone():
    work = Work()
    work.fails = LockgateError("no")
    fresh = Fresh(work)
    work.go_on.release()
    told = await asyncio.gather(fresh(), fresh(), return_exceptions=True)
    assert [str(each) for each in told] == ["no", "no"]
    work.fails = None
    work.go_on.release()
    assert await fresh() == 2


async def test_who_goes_away_does_not_take_the_run_along():
    work = Work()
    fresh = Fresh(work)
    gone, stays = asyncio.create_task(fresh()), asyncio.create_task(fresh())
    await until(lambda: work.begun == 1)
    gone.cancel()
    work.go_on.release()
    assert await stays == 1
    assert gone.cancelled()


async def test_closing_ends_what_runs_and_what_waits():
    work = Work()
    fresh = Fresh(work)
    tasks = [asyncio.create_task(fresh())]
    await until(lambda: work.begun == 1)
    tasks.append(asyncio.create_task(fresh()))
    await asyncio.sleep(0)
    await fresh.close()
    assert [isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*tasks, return_exceptions=True)] == [True, True]
    assert work.at_once == 0
