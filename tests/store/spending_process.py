"""A process that spends from one account until it is killed: `spending_process.py DATABASE OWNER COUNT SEED`.

Prints each verb once it is on disk: `held N AMOUNT`, `grown N AMOUNT`, `ended N COST`, `short N 0`.
"""

import asyncio
import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

from gateway.core.budget import Short
from gateway.core.rate import Take
from gateway.core.windows import Window
from gateway.store.protocol import Admitted
from gateway.store.sqlite import SqliteStore

_spec = importlib.util.spec_from_file_location("samples", Path(__file__).with_name("samples.py"))
assert _spec is not None
assert _spec.loader is not None
samples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(samples)

LIMIT = 3_000
HOUR = Window("rolling", length_ns=3600 * 10**9)
PLACE = Take("places", "key=key000000001", "concurrent", 10_000, 0)


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def _call(till: Any, n: int, chance: random.Random) -> None:
    amount, cost, again = chance.randrange(1, 60), chance.randrange(60), chance.randrange(4)
    answer = await till.begin(n, amount, takes=(PLACE,))
    if not isinstance(answer, Admitted):
        _tell(f"short {n} 0")
        return
    held = answer.granted.amount_nusd
    _tell(f"held {n} {held}")
    grown = await till.again(n, 2, amount, spent=held) if again == 0 else await till.extend(n, 2 * amount) if again == 1 else None
    if grown is not None and not isinstance(grown, Short):
        held = grown.amount_nusd
        _tell(f"grown {n} {held}")
    cost = min(cost, held)
    await till.finish(n, *((0, cost) if again == 0 and not isinstance(grown, Short) else (cost,)))
    _tell(f"ended {n} {cost}")


async def main(path: str, owner: str, count: int, seed: int) -> None:
    store = SqliteStore(path, owner)
    await store.start(now_ns=samples.NOW_NS)
    chance = random.Random(seed)
    till = samples.Till(store, samples.budget(limit=LIMIT), samples.budget("rolling", "all", LIMIT, window=HOUR))
    first = int.from_bytes(owner.encode()[-1:]) * 1_000_000
    for n in range(first, first + count, 8):  # eight at a time, so that a kill finds transactions of several calls
        await asyncio.gather(*(_call(till, m, chance) for m in range(n, n + 8)))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
