"""How a request or response body stands in its row: compressed where that pays, with its encoding beside it."""

import zlib
from typing import Final

# Compressing 1 kB costs 15 µs, storing it as it is 3: a call's two bodies would be half of what its record costs.
_SMALLEST: Final = 2048
# zlib's own defaults clear 256 KiB of tables for every body, 60 µs. A 4 KiB window costs 10 and loses little on small bodies.
_SMALL_WINDOW_UP_TO: Final = 16_384

RAW: Final = "raw"
ZLIB: Final = "zlib"
ABSENT: Final = ""


def pack(body: bytes | None) -> tuple[str, bytearray]:
    """The encoding and the stored bytes. No body is `("", b"")`.

    A bytearray, because `sqlite3` looks for an adapter on every `bytes` it binds, and that costs more than this copy.
    """
    if body is None:
        return ABSENT, bytearray()
    if len(body) < _SMALLEST:
        return RAW, bytearray(body)
    small = len(body) < _SMALL_WINDOW_UP_TO
    compressor = zlib.compressobj(1, zlib.DEFLATED, 12, 5) if small else zlib.compressobj(1)
    packed = compressor.compress(body) + compressor.flush()
    return (ZLIB, bytearray(packed)) if len(packed) < len(body) else (RAW, bytearray(body))


def unpack(encoding: str, data: bytes) -> bytes | None:
    """What `pack` was given.

    Raises:
        ValueError: the stored bytes are damaged, or of an encoding that this version does not know.
    """
    if encoding == ABSENT:
        return None
    if encoding == RAW:
        return bytes(data)
    if encoding != ZLIB:
        raise ValueError(f"unknown encoding {encoding!r}")
    try:
        return zlib.decompress(data)
    except zlib.error as error:
        raise ValueError(f"damaged body: {error}") from error
