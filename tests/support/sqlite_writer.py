"""A process that writes an SQLite database, one transaction after the other, and says the number of each that is done.

What the database holds after each can be told from its number.
"""

import random
import sqlite3
import sys
import time
from pathlib import Path

IDS_COUNT = 60


def changes_of(turn: int) -> dict[int, bytes]:
    """Rows that a transaction writes: several, so that half of one would be seen; some are longer than pages."""
    rng = random.Random(turn)
    return {id_: rng.randbytes(rng.choice((10, 700, 9000))) for id_ in rng.sample(range(IDS_COUNT), rng.randint(2, 8))}


def rows_after(turn: int) -> dict[int, bytes]:
    """All rows after so many transactions."""
    found: dict[int, bytes] = {}
    for each in range(1, turn + 1):
        found |= changes_of(each)
    return found


def connect(path: Path, journal_mode: str) -> sqlite3.Connection:
    """Raises sqlite3.OperationalError. `journal_mode`: WAL, DELETE, TRUNCATE, ..."""
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    try:
        (mode,) = connection.execute(f"pragma journal_mode={journal_mode}").fetchone()
        assert mode == journal_mode.lower(), mode
        connection.execute("pragma synchronous=full")
        connection.execute("pragma wal_autocheckpoint=50")
        connection.execute("create table if not exists turn (number integer)")
        connection.execute("create table if not exists row (id integer primary key, data blob)")
    except BaseException:
        connection.close()
        raise
    return connection


def last_turn(connection: sqlite3.Connection) -> int:
    """How many transactions the database knows of."""
    found: int = connection.execute("select coalesce(max(number), 0) from turn").fetchone()[0]
    return found


def write(path: Path, journal_mode: str) -> None:
    """Until an error."""
    connection = connect(path, journal_mode)
    try:
        turn = last_turn(connection)
        while True:
            turn += 1
            connection.execute("begin immediate")
            connection.executemany("insert or replace into row values (?, ?)", changes_of(turn).items())
            connection.execute("insert into turn values (?)", (turn,))
            connection.execute("commit")
            print(turn, flush=True)
    finally:
        connection.close()


def main(path: Path, journal_mode: str) -> None:
    while True:
        try:
            write(path, journal_mode)
        except sqlite3.Error as error:
            print(error, file=sys.stderr)
            time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
