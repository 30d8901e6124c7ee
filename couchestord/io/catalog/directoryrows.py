"""Rows of directories: which come with what lies in them, and go with it unless they are kept."""

from collections.abc import Iterable
from typing import Protocol

from couchestord.io.catalog.changes import Watch
from couchestord.io.outcome import MadeDirectory
from couchestord.io.sqlite import Connection, Execute, Shut


class _Applier(Protocol):
    watch: Watch

    def use_ids(self, first: int, count: int = 1) -> None: ...

    def change_tree(self) -> None: ...


class DirectoryRows:
    """Applies what concerns directories. Inside the caller's transaction."""

    def __init__(self, connection: Connection, applier: _Applier) -> None:
        self._applier = applier
        self.connect(connection)

    def connect(self, connection: Connection | Shut) -> None:
        """Work through this connection from now on."""
        self._run: Execute = connection.execute

    def insert_root(self, id_: int, made_ns: int) -> None:
        """That of a bucket."""
        self._run("insert into directory values (?, 0, x'', 1, ?, 0)", (id_, made_ns))

    def insert(self, id_: int, parent: int, name: bytes, made_ns: int, *, kept: bool = False) -> None:
        """A directory and its entry."""
        self._run("insert into directory values (?, ?, ?, ?, ?, 0)", (id_, parent, name, kept, made_ns))
        self._count(parent, 1)
        self._run(
            "insert into entry (directory, name, child, cookie, flags) values (?, ?, ?, ?, 0)", (parent, name, id_, id_)
        )
        self._applier.use_ids(id_)
        self._applier.watch.name(parent, name)

    def insert_made(self, directories: Iterable[MadeDirectory], made_ns: int) -> None:
        """Those that an object made on its way."""
        for made in directories:
            self.insert(made.id, made.parent, made.name, made_ns)

    def remove(self, directory: int) -> int:
        """An empty directory, with the attributes that it has through a mount. Answers what it lay in."""
        parent, name, kept = self._run("select parent, name, kept from directory where id=?", (directory,)).fetchone()
        self._run("delete from directory where id=?", (directory,))
        if kept:
            self._run("delete from inode where id=?", (directory,))
            self._run("delete from xattr where inode=?", (directory,))
        self._run("delete from entry where directory=? and name=?", (parent, name))
        self._count(parent, -1)
        self._applier.change_tree()
        self._applier.watch.name(parent, name)
        return int(parent)

    def moved(self, directory: int, old_parent: int, parent: int, name: bytes) -> None:
        """Its entry is another one."""
        self._run("update directory set parent=?, name=? where id=?", (parent, name, directory))
        if parent != old_parent:
            self._count(old_parent, -1)
            self._count(parent, 1)
        self._applier.change_tree()

    def _count(self, directory: int, change: int) -> None:
        self._run("update directory set children=children+? where id=?", (change, directory))

    def touch(self, directory: int, changed_ns: int, *, keep: bool = False) -> None:
        """An entry of it came or went, and a mount shows it. `keep`: it stays though it is empty."""
        self._run("update directory set changed_ns=?, kept=kept|? where id=?", (changed_ns, keep, directory))
        self._run("update inode set modified_ns=?, changed_ns=? where id=?", (changed_ns, changed_ns, directory))

    def prune(self, directory: int, changed_ns: int | None = None, *, kept_too: bool = False) -> None:
        """Remove the directory and those above it as far as they are empty and nobody asked to keep them; `kept_too`:
        whoever did. With `changed_ns` a mount shows the one that stays.
        """
        while True:
            parent, kept = self._run("select parent, kept from directory where id=?", (directory,)).fetchone()
            if (kept and not kept_too) or not parent:
                return
            for table in ("entry", "version"):
                if self._run(f"select 1 from {table} where directory=? limit 1", (directory,)).fetchone():
                    return
            directory = self.remove(directory)
            if changed_ns is not None:
                self.touch(directory, changed_ns)

    def root_of(self, directory: int) -> int:
        """The root of the bucket that it lies in."""
        while True:
            (parent,) = self._run("select parent from directory where id=?", (directory,)).fetchone()
            if not parent:
                return directory
            directory = parent

    def key_of(self, directory: int, name: bytes) -> bytes:
        """The key of an entry in it."""
        parts = [name]
        while True:
            parent, part = self._run("select parent, name from directory where id=?", (directory,)).fetchone()
            if not parent:
                return b"".join(reversed(parts))
            parts.append(part)
            directory = parent
