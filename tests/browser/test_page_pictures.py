"""The pictures of the documentation, made of the page itself: `LOCKGATE_SCREENSHOTS=1 pytest tests/browser/test_page_pictures.py`."""

import os
from pathlib import Path

import pytest

pytestmark = [pytest.mark.asyncio(loop_scope="session"),
              pytest.mark.skipif("LOCKGATE_SCREENSHOTS" not in os.environ, reason="pictures are made on demand: LOCKGATE_SCREENSHOTS=1")]

FOLDER = Path(__file__).parents[2] / "docs/images"
LARGEST = 150_000
DESKTOP, PHONE = (1200, 800), (390, 844)


async def take(page, name):
    await page.locator("#main:not([aria-busy]) h1").wait_for()
    await page.evaluate("document.activeElement.blur()")
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / name
    await page.screenshot(path=path)
    assert path.stat().st_size < LARGEST
