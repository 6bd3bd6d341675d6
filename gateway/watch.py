"""Notices when a file of a deployment has changed. Knows nothing of what the files say.

The system's notifications only wake it up: whether anything has changed is seen from the files themselves. So the traffic of a
database beside them means nothing, and what no notification tells (a file system without them, a link somewhere above that now leads
elsewhere) is still seen within `_LOOK_S`.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Final, TypeAlias

from watchfiles import awatch

from gateway.config import Deployment
from gateway.smallfile import read_small
from gateway.toml_source import MAX_BYTES

_LOOK_S: Final = 2.0
_SETTLE_S: Final = 0.1  # nothing more has changed for so long: an editor or a copy is done
_LONGEST_S: Final = 1.0  # and not later than this after the first change
_REFERENCE: Final = re.compile(r"""["']file:([^"'\n]+)["']""")

Seen: TypeAlias = Mapping[str, tuple[int, int, int] | None]


class Watch:
    """Watches the files of a deployment, from what they were when it was made."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._seen = look(deployment)

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield whenever a file has changed, once for changes that come together. Never ends."""
        while True:
            now = await asyncio.to_thread(look, self._deployment)
            if now != self._seen:
                self._seen = now
                yield
            async with aclosing(self._woken()) as woken:
                async for _ in woken:
                    if await asyncio.to_thread(look, self._deployment) != self._seen:
                        break  # a folder that is new, or another than it was, is watched from now on

    async def _woken(self) -> AsyncGenerator[None, None]:
        """Yield when it may be worth to look."""
        folders = [folder for folder in _folders(self._deployment) if folder.is_dir()]
        try:
            async with aclosing(awatch(
                *folders, watch_filter=None, recursive=False, yield_on_timeout=True,
                rust_timeout=_ms(_LOOK_S), step=_ms(_SETTLE_S), debounce=_ms(_LONGEST_S),
            )) as told:
                async for _ in told:
                    yield
        except (OSError, RuntimeError):  # the system gives no more watches, or a folder has just gone
            await asyncio.sleep(_LOOK_S)
            yield


def look(deployment: Deployment) -> Seen:
    """What stands where, by its time, size and inode: config.toml, routes, rules, cases, lists, and the files of secrets."""
    root, routes, *rules = _folders(deployment)
    referring = [root / deployment.file, *_files(routes)]
    secrets = [root / name for file in referring for name in _references(file)]
    return {str(file): _state(file) for file in (*referring, *secrets, *(file for folder in rules for file in _files(folder)))}


def _folders(deployment: Deployment) -> tuple[Path, ...]:
    paths, root = deployment.config.paths, deployment.folder
    return root, root / paths.routes, root / paths.policies, root / paths.policies / "lists"


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from (path for path in sorted(folder.iterdir()) if path.suffix in (".toml", ".txt") and not path.name.startswith("."))
    except OSError:  # a folder that is gone holds nothing
        return


def _references(file: Path) -> list[str]:
    """The files of secrets that a file refers to; one that only a comment names does no harm."""
    try:
        return _REFERENCE.findall(read_small(file, limit=MAX_BYTES).decode("utf-8", "replace"))
    except ValueError:
        return []


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
