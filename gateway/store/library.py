"""Which SQLite this process uses: the one that sqlite-utils picks, the newest installed.

Everything imports `sqlite3` from here. Two SQLite libraries in one process on one file break each other's POSIX locks
(https://sqlite.org/howtocorrupt.html, section 2.2).
"""

from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined] # sqlite-utils offers it without declaring it

__all__ = ["sqlite3"]
