"""What the scheduler keeps beyond a restart: a small SQLite file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from lrai.errors import ConfigError
from lrai.scheduler.history import Digest

_KEPT_DAYS: Final = 400
_Days = Iterable[Digest]
_TABLES: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS learnt (
    model TEXT, version TEXT, policy TEXT, state TEXT, PRIMARY KEY (model, version, policy)
);
CREATE TABLE IF NOT EXISTS digests (
    model TEXT, version TEXT, day INTEGER, requests INTEGER, p50_s REAL, p99_s REAL, late INTEGER,
    refused_late INTEGER, PRIMARY KEY (model, version, day)
);
"""


class Store:
    """One file; a server has it for itself."""

    def __init__(self, folder: Path) -> None:
        """Open or make `scheduler.sqlite` in `folder`; raises ConfigError if that cannot be."""
        import sqlite3  # only where something is kept: 1 MB

        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(folder / "scheduler.sqlite")
            self._database.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            message = f"{folder / 'scheduler.sqlite'} cannot be used: {error}"
            raise ConfigError(message, hint="give --state a folder that can be written") from error

    def learnt(self, model: str, version: str, policy: str) -> dict[str, Any]:
        """Return what the policy had learnt of the model; empty if nothing is kept."""
        query = "SELECT state FROM learnt WHERE model = ? AND version = ? AND policy = ?"
        row = self._database.execute(query, (model, version, policy)).fetchone()
        plain: dict[str, Any] = json.loads(row[0]) if row else {}
        return plain

    def keep(
        self, model: str, version: str, policy: str, plain: dict[str, Any], days: _Days = ()
    ) -> None:
        """Keep what the policy has learnt, if anything, and days; forget those of a year ago.

        Raises sqlite3.Error, for instance where the disk is full; then nothing of it is kept.
        """
        with self._database as database:
            if plain:
                learnt = (model, version, policy, json.dumps(plain))
                database.execute("INSERT OR REPLACE INTO learnt VALUES (?, ?, ?, ?)", learnt)
            for day in days:
                row = (model, version, *day)
                database.execute("INSERT OR REPLACE INTO digests VALUES (?,?,?,?,?,?,?,?)", row)
                database.execute("DELETE FROM digests WHERE day < ?", (day.day - _KEPT_DAYS,))

    def digests(self, model: str, version: str, most: int) -> list[Digest]:
        """Return the last days with requests, oldest first."""
        query = (
            "SELECT day, requests, p50_s, p99_s, late, refused_late FROM digests"
            " WHERE model = ? AND version = ? ORDER BY day DESC LIMIT ?"
        )
        rows = self._database.execute(query, (model, version, most)).fetchall()
        return [Digest(*row) for row in reversed(rows)]

    def close(self) -> None:
        """Close the file."""
        self._database.close()
