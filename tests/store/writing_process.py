"""A process that writes calls until it is killed: `writing_process.py DATABASE OWNER COUNT`. Prints each verb once it is on disk."""

import asyncio
import importlib.util
import sys
from pathlib import Path

from gateway.store.sqlite import SqliteStore

_spec = importlib.util.spec_from_file_location("samples", Path(__file__).with_name("samples.py"))
assert _spec is not None
assert _spec.loader is not None
samples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(samples)


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _call(store: SqliteStore, n: int) -> None:
    await store.journal.begin(samples.intent(n, request=b"q" * 700))
    _tell(f"begun {n}")
    if n % 3 == 0:
        await store.journal.dispatch(samples.dispatch(n, 2))
        failed = samples.attempt(1, end=samples.AttemptEnd.FAILED, cause="status:500", cost_nusd=0)
        tries = [failed, samples.attempt(2, target=samples.OTHER)]
    else:
        tries = [samples.attempt(1)]
    await store.journal.finish(samples.completed(n, attempts=tuple(tries)), response=b"a" * 3000)
    _tell(f"ended {n}")


async def main(path: str, owner: str, count: int) -> None:
    store = SqliteStore(path, owner)
    await store.start(now_ns=samples.NOW_NS)
    first = int.from_bytes(owner.encode()[-1:]) * 1_000_000
    for n in range(first, first + count, 8):  # eight at a time, so that a kill finds transactions of several calls
        await asyncio.gather(*(_call(store, m) for m in range(n, n + 8)))
    await store.close()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
