"""Whatever way a file of a deployment changes it is noticed, and what is not of the deployment is no change."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from watchfiles import awatch

from gateway import watch
from gateway.config import Deployment
from gateway.deployment import read_deployment
from gateway.watch import Watch, look

CONFIG = '[admin]\ntoken = "file:secrets/admin"\n'
DEADLINE_S = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A deployment behind a link, as where releases are switched by one."""
    release = tmp_path / "one"
    for name in ("routes", "policies", "secrets"):
        (release / name).mkdir(parents=True)
    (release / "config.toml").write_text(CONFIG)
    (release / "policies/p.toml").write_text("")
    (release / "secrets/admin").write_text("x")
    (tmp_path / "current").symlink_to("one")
    return tmp_path / "current"


@pytest.fixture
def deployment(folder: Path) -> Deployment:
    return read_deployment(folder / "config.toml")


def rename_over(folder: Path) -> None:
    """How an editor writes."""
    (folder / "policies/.p.toml.swp").write_text("# changed")
    (folder / "policies/.p.toml.swp").replace(folder / "policies/p.toml")


def switch_release(folder: Path) -> None:
    """A link above everything leads elsewhere, and nothing in any folder has changed."""
    release = folder.resolve()
    shutil.copytree(release, release.parent / "two")
    (folder.parent / "next").symlink_to("two")
    (folder.parent / "next").replace(folder)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda folder: (folder / "policies/p.toml").write_text("# changed"),
    "renamed over": rename_over,
    "release switched": switch_release,
    "configuration": lambda folder: (folder / "config.toml").write_text(CONFIG + "#"),
    "configuration removed": lambda folder: (folder / "config.toml").unlink(),
    "new file": lambda folder: (folder / "routes/new.toml").write_text(""),
    "removed file": lambda folder: (folder / "policies/p.toml").unlink(),
    "cases": lambda folder: (folder / "policies/p.cases.toml").write_text(""),
    "secret rotated": lambda folder: (folder / "secrets/admin").write_text("rotated"),
    "folder of rules removed": lambda folder: shutil.rmtree(folder / "policies"),
}
NO_CHANGES: dict[str, Callable[[Path], object]] = {
    "database": lambda folder: (folder / "lockgate.db-wal").write_text("x"),
    "editor's own": lambda folder: (folder / "policies/.p.toml.swp").write_text("x"),
    "notes": lambda folder: (folder / "policies/README.md").write_text("x"),
    "read": lambda folder: (folder / "config.toml").read_text(),
    "code": lambda folder: (folder / "adapters").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_since_the_files_were_read_is_told(folder, deployment, change):
    seen = Watch(deployment)
    change(folder)
    async with aclosing(told := seen.changes()):
        await asyncio.wait_for(anext(told), DEADLINE_S)


@pytest.mark.parametrize("change", NO_CHANGES.values(), ids=NO_CHANGES)
def test_what_is_not_of_the_deployment_is_no_change(folder, deployment, change):
    before = look(deployment)
    change(folder)
    assert look(deployment) == before


def test_a_list_in_a_folder_that_was_not_there_is_a_change(folder, deployment):
    before = look(deployment)
    (folder / "policies/lists").mkdir()
    (folder / "policies/lists/x.txt").write_text("")
    assert look(deployment) != before


def test_a_mounted_config_map_that_is_switched_is_a_change(tmp_path):
    """Kubernetes: files are links into a hidden folder, which is a link itself that is replaced by another."""
    for version, text in (("..1", "# one"), ("..2", "# two")):
        (tmp_path / "policies" / version).mkdir(parents=True)
        (tmp_path / "policies" / version / "p.toml").write_text(text)
    (tmp_path / "policies/..data").symlink_to("..1")
    (tmp_path / "policies/p.toml").symlink_to("..data/p.toml")
    (tmp_path / "routes").mkdir()
    (tmp_path / "config.toml").write_text("")
    deployment = read_deployment(tmp_path / "config.toml")
    assert deployment.unread == ()
    before = look(deployment)
    (tmp_path / "policies/..tmp").symlink_to("..2")
    (tmp_path / "policies/..tmp").replace(tmp_path / "policies/..data")
    assert look(deployment) != before


async def told_of_writes(folder: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, wake: Callable[..., Any]) -> None:
    """Write, once nothing but `wake` can tell of it, until it is told; each write is a change of its own."""
    waiting = asyncio.Event()

    def waits(*folders: Path, **options: Any) -> Any:
        waiting.set()
        return wake(*folders, **options)

    monkeypatch.setattr(watch, "awatch", waits)
    async with aclosing(told := Watch(deployment).changes()), asyncio.timeout(DEADLINE_S):
        first = asyncio.ensure_future(anext(told))
        await waiting.wait()
        for number in itertools.count(1):
            (folder / "routes/mark.toml").write_text("#" * number)
            await asyncio.wait([first], timeout=0.3)
            if first.done():
                break


async def test_the_system_tells_of_a_change_before_it_is_looked_for(folder, deployment, monkeypatch):
    monkeypatch.setattr(watch, "_LOOK_S", 3600.0)
    await told_of_writes(folder, deployment, monkeypatch, awatch)


async def test_without_the_systems_help_files_are_looked_at_all_the_same(folder, deployment, monkeypatch):
    """A machine's watches are limited, and others may have taken them all."""
    async def refused(*_folders: Path, **_options: Any) -> AsyncIterator[None]:
        raise OSError(28, "no space left on device: inotify watches")
        yield

    monkeypatch.setattr(watch, "_LOOK_S", 0.01)
    await told_of_writes(folder, deployment, monkeypatch, refused)


@pytest.mark.parametrize("change", ["release switched", "secret rotated"])
async def test_what_the_system_does_not_tell_is_looked_for(folder, deployment, monkeypatch, change):
    monkeypatch.setattr(watch, "_LOOK_S", 0.1)
    looks = 0

    def counted(deployment: Deployment) -> Any:
        nonlocal looks
        looks += 1
        if looks == 3:
            CHANGES[change](folder)
        return look(deployment)

    seen = Watch(deployment)
    monkeypatch.setattr(watch, "look", counted)
    async with aclosing(told := seen.changes()):
        await asyncio.wait_for(anext(told), DEADLINE_S)
    assert looks >= 3
