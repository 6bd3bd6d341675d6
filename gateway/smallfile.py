"""Reads a file that an operator wrote: small, regular, never waited for."""

import os
import stat
from pathlib import Path


def read_small(path: Path, *, limit: int) -> bytes:
    """The whole file, at most `limit` bytes.

    Raises:
        ValueError: it is missing, unreadable, a directory, a device, a pipe, or larger; the message says which.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a named pipe without a writer would block for ever
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError(f"{path} is not a regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise ValueError(f"{path} is larger than {limit} bytes")
    return data
