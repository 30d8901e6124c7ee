"""A bucket as a mount and as S3 at once, beside a local folder on which the same is done: after each step all agree.

The local folder is the model: what its own file system does with a call is what the mount has to do. Of a file that is
open S3 shows what it held when it was synced or closed last, or later.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from mounted import fetched, listed
from workload import content, digest_of

LONG: Final = "n" * 255
NAMES: Final = ("a", "b", "d", "d/a", "d/a", "d/b", "d/e/a", LONG)
KEPT: Final = "kept"
"""A file that nobody touches: its folder stays."""
OPEN_MAX: Final = 2
_OLD_NS: Final = 10**18
"""Times that are set are no later, in 2001; all others are those of the test."""
_FLAGS: Final = (
    os.O_RDONLY,
    os.O_RDWR,
    os.O_RDWR,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_RDWR | os.O_APPEND,
)
Name = str | int
_NAMES: Final = st.sampled_from(NAMES) | st.integers(0, 31)
"""A number is one of the names that are there."""
_TARGETS: Final = st.sampled_from(("", "", "", "a", "d/a", "../a", "nowhere", "."))
_CHANGES: Final = st.sampled_from(("mode", "owner", "times", "set", "create", "replace", "remove"))
_SEEDS: Final = st.integers(0, (1 << 16) - 1)
_LENGTHS: Final = st.sampled_from((0, 1, 100, 4096, 10_000, 70_001, 200_000))
_OFFSETS: Final = st.sampled_from((None, 0, 1, 4095, 50_000, 150_000))
_PICKS: Final = st.integers(0, OPEN_MAX - 1)
_SELDOM: Final = st.sampled_from((False, False, True))


class BothViews(RuleBasedStateMachine):
    """Steps, and what holds after each."""

    def __init__(self, client: Any, mounted: Path, local: Path) -> None:
        """`mounted`: in the root of the mount of the bucket `box`; `local`: elsewhere, so named. Both are made."""
        super().__init__()
        for folder in (mounted, local):
            folder.mkdir()
            (folder / KEPT).touch()
        self._client = client
        self._mounted, self._local = mounted, local
        self._prefix = mounted.name + "/"
        self._open: list[tuple[int, int]] = []
        """Descriptors here and there."""
        self._states: dict[int, list[bytes]] = {}
        """What files have held since they were published last, by their numbers in the local folder."""
        self._made_by_s3: set[int] = set()
        """Directories that go with their last key."""
        self._seen: dict[str, tuple[str, bytes]] = {}
        """(etag, body) of objects when they were read last."""
        self._there: list[str] = []

    def teardown(self) -> None:
        with ExitStack() as stack:
            for both in self._open:
                for number in both:
                    stack.callback(os.close, number)

    @initialize(seed=_SEEDS)
    def begin(self, seed: int) -> None:
        """With something of either side."""
        for name in ("d/a", "b"):
            self.put(name, seed, 10_000, in_parts=False)
        self.write_anew("a", seed, 4096)
        self.link("a", "d/b")
        self.all_agree()

    # -- what all steps do -----------------------------------------------------------------------------------------

    def _both(self, call: Callable[[Path], object]) -> bool:
        """The same here and there, with the same result or error. Whether it was done."""
        return self._same([lambda top=top: call(top) for top in (self._mounted, self._local)])  # type: ignore[misc]

    def _both_open(self, pick: int, call: Callable[[int], object]) -> bool:
        """The same, of an open file."""
        return self._same([lambda number=number: call(number) for number in self._open[pick]])  # type: ignore[misc]

    def _same(self, calls: list[Callable[[], object]]) -> bool:
        found: list[object] = []
        is_done = True
        for call in calls:
            try:
                found.append(call())
            except OSError as error:
                found.append(errno.errorcode[error.errno or 0])
                is_done = False
        assert found[0] == found[1], f"{found[0]!r:.100} on the mount, {found[1]!r:.100} locally"
        return is_done

    def _touch(self, *names: str | Path) -> None:
        """Something in the directories of these was made or removed through the mount: they stay."""
        for name in names:
            self._made_by_s3.discard(os.stat((self._local / name).parent).st_ino)

    def _number(self, name: str) -> int:
        """Of what the name leads to, 0: nothing."""
        try:
            return os.stat(self._local / name).st_ino
        except OSError:
            return 0

    def _published(self, number: int) -> None:
        self._states.pop(number, None)

    def _name(self, name: Name) -> str:
        return name if isinstance(name, str) else [*self._there, "a"][name % (len(self._there) + 1)]

    # -- entries ---------------------------------------------------------------------------------------------------

    @rule(name=_NAMES, leads_to=_TARGETS)
    def make(self, name: Name, leads_to: str) -> None:
        """A symbolic link, or a directory."""
        name = self._name(name)
        if self._both(lambda top: os.symlink(leads_to, top / name) if leads_to else (top / name).mkdir()):
            self._touch(name)

    @rule(name=_NAMES, is_directory=_SELDOM)
    def remove(self, name: Name, is_directory: bool) -> None:
        name = self._name(name)
        if self._both(lambda top: (top / name).rmdir() if is_directory else (top / name).unlink()):
            self._touch(name)

    @rule(name=_NAMES, new=_NAMES)
    def rename(self, name: Name, new: Name) -> None:
        name, new = self._name(name), self._name(new)
        before = [os.path.lexists(self._local / each) and os.lstat(self._local / each).st_ino for each in (name, new)]
        # before: what is renamed may be what leads to where it goes
        directories = {self._number(os.fspath(Path(each).parent)) for each in (name, new)}
        if self._both(lambda top: os.rename(top / name, top / new)) and before[0] != before[1]:
            self._made_by_s3 -= directories

    @rule(name=_NAMES, new=_NAMES)
    def link(self, name: Name, new: Name) -> None:
        name, new = self._name(name), self._name(new)
        if self._both(lambda top: os.link(top / name, top / new)):
            self._touch(new)

    @rule(name=_NAMES, what=_CHANGES, seed=_SEEDS)
    def change(self, name: Name, what: str, seed: int) -> None:
        """Attributes."""
        name, which = self._name(name), f"user.t.{seed % 2}"

        def call(top: Path) -> None:
            match what:
                case "mode":
                    (top / name).chmod((0o600, 0o644, 0o755, 0)[seed % 4])
                case "owner":
                    os.chown(top / name, seed % 3, seed % 5)
                case "times":
                    os.utime(top / name, ns=(_OLD_NS, _OLD_NS - seed))
                case "remove":
                    os.removexattr(top / name, which)
                case _:
                    how = {"set": 0, "create": os.XATTR_CREATE, "replace": os.XATTR_REPLACE}[what]
                    os.setxattr(top / name, which, content(f"{seed}", seed % 300), how)

        if self._both(call):
            self._made_by_s3.discard(self._number(name))

    # -- bytes -----------------------------------------------------------------------------------------------------

    @rule(name=_NAMES, seed=_SEEDS, length=_LENGTHS)
    def write_anew(self, name: Name, seed: int, length: int) -> None:
        name = self._name(name)
        is_new, data = not self._number(name), content(f"{seed}", length)
        if self._both(lambda top: (top / name).write_bytes(data)):
            if is_new:
                self._touch(os.path.realpath(self._local / name))
            self._published(self._number(name))

    @rule(name=_NAMES, seed=_SEEDS, length=_LENGTHS, offset=_OFFSETS)
    def write_over(self, name: Name, seed: int, length: int, offset: int | None) -> None:
        """`offset` None: at the end."""
        name, data = self._name(name), content(f"{seed}", length)

        def write(top: Path) -> None:
            number = os.open(top / name, os.O_RDWR | (os.O_APPEND if offset is None else 0))
            try:
                os.pwrite(number, data, offset or 0)
            finally:
                os.close(number)

        if self._both(write):
            self._published(self._number(name))

    @rule(name=_NAMES, length=_LENGTHS)
    def truncate(self, name: Name, length: int) -> None:
        """One to the length that it has changes no time, as the manual says. Not every file system keeps to that."""
        name = self._name(name)
        path = self._local / name
        before = path.stat() if path.exists() else None
        if self._both(lambda top: os.truncate(top / name, length)) and before is not None and before.st_size == length:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    # -- open files ------------------------------------------------------------------------------------------------

    @rule(name=_NAMES, flags=st.sampled_from(_FLAGS))
    def open(self, name: Name, flags: int) -> None:
        if len(self._open) == OPEN_MAX:
            self.close(0)
            self.all_agree()  # it may be the file that is opened, with O_TRUNC
        name = self._name(name)
        is_new, opened = not self._number(name), list[int]()

        def open_it(top: Path) -> None:
            opened.append(os.open(top / name, flags, 0o644))

        if self._both(open_it):
            self._open.append((opened[0], opened[1]))
            if is_new:
                self._touch(os.path.realpath(self._local / name))

    @precondition(lambda self: bool(self._open))
    @rule(pick=_PICKS)
    def close(self, pick: int) -> None:
        here, there = self._open.pop(pick % len(self._open))
        if fcntl.fcntl(there, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            self._published(os.fstat(there).st_ino)
        os.close(here)
        os.close(there)

    @precondition(lambda self: bool(self._open))
    @rule(pick=_PICKS, only_data=st.booleans())
    def sync(self, pick: int, only_data: bool) -> None:
        pick %= len(self._open)
        self._both_open(pick, os.fdatasync if only_data else os.fsync)
        self._published(os.fstat(self._open[pick][1]).st_ino)

    @precondition(lambda self: bool(self._open))
    @rule(pick=_PICKS, seed=_SEEDS, length=_LENGTHS, offset=_OFFSETS)
    def write_open(self, pick: int, seed: int, length: int, offset: int | None) -> None:
        """`offset` None: where the last one ended, or at the end."""
        data = content(f"{seed}", length)
        self._both_open(
            pick % len(self._open),
            lambda number: os.write(number, data) if offset is None else os.pwrite(number, data, offset),
        )

    @precondition(lambda self: bool(self._open))
    @rule(pick=_PICKS, length=_LENGTHS, offset=_OFFSETS)
    def truncate_open(self, pick: int, length: int, offset: int | None) -> None:
        """With `offset` something is written there at once: a hole may come between."""

        def call(number: int) -> None:
            os.ftruncate(number, length)
            if offset is not None:
                os.pwrite(number, b"behind", offset)

        self._both_open(pick % len(self._open), call)

    @precondition(lambda self: bool(self._open))
    @rule(pick=_PICKS, length=_LENGTHS, offset=_OFFSETS)
    def read_open(self, pick: int, length: int, offset: int | None) -> None:
        """It may have no name any more, or another file may have it."""
        pick %= len(self._open)
        self._both_open(pick, lambda number: os.pread(number, length, offset or 0))
        self._both_open(pick, lambda number: os.read(number, length))
        if stat.S_ISREG(os.fstat(self._open[pick][1]).st_mode):
            self._both_open(pick, lambda number: (os.fstat(number).st_size, os.fstat(number).st_nlink))

    # -- S3 --------------------------------------------------------------------------------------------------------

    @rule(name=_NAMES, seed=_SEEDS, length=_LENGTHS, in_parts=_SELDOM)
    def put(self, name: Name, seed: int, length: int, in_parts: bool) -> None:
        """`in_parts`: a multipart upload, which is of one part and begun just now."""
        name = self._name(name)
        if not self._can_be_put(name):
            return
        place, data = {"Bucket": "box", "Key": self._prefix + name}, content(f"{seed}", length)
        if in_parts:
            upload = self._client.create_multipart_upload(**place)["UploadId"]
            part = self._client.upload_part(**place, UploadId=upload, PartNumber=1, Body=data)
            parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
            self._client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
        else:
            self._client.put_object(**place, Body=data)
        self._put_locally(name, data)

    @rule(name=_NAMES, new=_NAMES)
    def copy(self, name: Name, new: Name) -> None:
        name, new = self._name(name), self._name(new)
        source = self._local / name
        is_file = source.is_file() and not source.is_symlink() and self._is_plain(name)
        if name == new or not is_file or not self._can_be_put(new):
            return
        copied = self._client.copy_object(
            Bucket="box", Key=self._prefix + new, CopySource={"Bucket": "box", "Key": self._prefix + name}
        )
        etag, size = listed(self._client, self._prefix + new)[""]
        assert etag == copied["CopyObjectResult"]["ETag"]
        body = fetched(self._client, self._prefix + new, etag, size)
        assert body in self._states[source.stat().st_ino], "a copy of what it never was"
        self._put_locally(new, body)

    @rule(name=_NAMES, with_siblings=_SELDOM)
    def delete(self, name: Name, with_siblings: bool) -> None:
        """`with_siblings`: all that is listed of its directory, and below. An empty directory is a key, too."""
        name = self._name(name)
        path, names = self._local / name, [name]
        if not self._is_plain(name):
            return
        if with_siblings and path.parent.is_dir():
            names = [os.fspath(each.relative_to(self._local)) for each in path.parent.rglob("*")]
        keys = [key for each in names for key in self._keys_of(each)]
        # those of one request go in any order, and what an empty directory lies in goes along if nothing else is there
        self._delete_together([key for key in keys if not key.endswith("/")])
        self._delete_together([key for key in keys if key.endswith("/")])

    def _delete_together(self, keys: list[str]) -> None:
        if keys:
            objects = [{"Key": self._prefix + key} for key in keys]
            answer = self._client.delete_objects(Bucket="box", Delete={"Objects": objects})
            assert len(answer["Deleted"]) == len(keys)
        for key in keys:
            self._delete_locally(key)

    def _keys_of(self, name: str) -> list[str]:
        path = self._local / name
        if not is_directory(path):
            return [] if name == KEPT else [name]
        return [] if os.listdir(path) else [name + "/"]

    def _delete_locally(self, key: str) -> None:
        path = self._local / key
        if key.endswith("/"):
            while not os.listdir(path):
                path.rmdir()
                path = path.parent
        elif os.path.lexists(path):
            path.unlink()
            while (path := path.parent).stat().st_ino in self._made_by_s3 and not os.listdir(path):
                path.rmdir()

    def _is_plain(self, name: str) -> bool:
        """The key is that of the name: no symbolic links are on the way."""
        parents = [self._local / parent for parent in Path(name).parents[:-1]]
        return all(is_directory(parent) for parent in parents if os.path.lexists(parent))

    def _can_be_put(self, name: str) -> bool:
        """What is there then is what a local file system can have: no file below a file or beside a directory."""
        return self._is_plain(name) and not is_directory(self._local / name)

    def _put_locally(self, name: str, data: bytes) -> None:
        path = self._local / name
        for parent in reversed(path.relative_to(self._local).parents[:-1]):
            if not (self._local / parent).exists():
                (self._local / parent).mkdir()
                (self._local / parent).chmod(0o755)
                self._made_by_s3.add((self._local / parent).stat().st_ino)
        before = path.parent.stat() if os.path.lexists(path) else None
        new = self._local / "new"
        new.write_bytes(data)
        new.chmod(0o644)
        new.rename(path)
        if before is not None:  # no entry came or went
            os.utime(path.parent, ns=(before.st_atime_ns, before.st_mtime_ns))

    # -- what holds ------------------------------------------------------------------------------------------------

    @invariant()
    def all_agree(self) -> None:
        expected, here = shown(self._local), shown(self._mounted)
        differing = {name: (here.get(name), expected.get(name)) for name in {*here, *expected}}
        assert here == expected, {name: both for name, both in differing.items() if both[0] != both[1]}
        self._there = [name for name in expected if name != KEPT]
        paths = [self._local / name for name in expected]
        self._made_by_s3 &= {path.stat().st_ino for path in paths if is_directory(path)}
        self._note_states(paths)
        keys = listed(self._client, self._prefix)
        should_be = {key for name in self._there for key in self._keys_of(name)} | {KEPT}
        assert set(keys) == should_be, f"S3 lists {set(keys)}, that should be {should_be}"
        for key, (etag, size) in keys.items():
            states = self._states_of(key)
            before = self._seen.get(key)
            if before is None or before[0] != etag or before[1] != states[0]:
                self._seen[key] = etag, fetched(self._client, self._prefix + key, etag, size)
            body = self._seen[key][1]
            assert body in states, f"{key}: S3 shows neither what was published nor what came later"
            del states[: states.index(body)]

    def _states_of(self, key: str) -> list[bytes]:
        """What S3 may show of a file, oldest first; what it has shown is removed by who asks."""
        path = self._local / key
        if path.is_symlink():
            return [os.readlink(path).encode()]
        return [b""] if is_directory(path) else self._states[path.stat().st_ino]

    def _note_states(self, paths: list[Path]) -> None:
        are_open = {os.fstat(there).st_ino for _, there in self._open}
        files = {path.stat().st_ino: path for path in paths if path.is_file() and not path.is_symlink()}
        before, self._states = self._states, {}
        for number, path in files.items():
            data = path.read_bytes()
            states = before.get(number, []) if number in are_open else []
            self._states[number] = states if data in states[-1:] else [*states, data]


def is_directory(path: Path) -> bool:
    """Itself."""
    return path.is_dir() and not path.is_symlink()


def shown(folder: Path) -> dict[str, tuple[object, ...]]:
    """What a folder holds, to the attributes that both views can be asked for."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name, about = os.fspath(path.relative_to(folder)), path.lstat()
        if path.is_symlink():
            found[name] = "link", os.readlink(path)
            continue
        attributes = {
            each: os.getxattr(path, each) for each in sorted(os.listxattr(path)) if each.startswith("user.t.")
        }
        old_ns = about.st_mtime_ns if about.st_mtime_ns <= _OLD_NS else None
        both = stat.S_IMODE(about.st_mode), about.st_uid, about.st_gid, about.st_nlink, old_ns, attributes
        if path.is_dir():
            found[name] = "folder", *both
        else:
            found[name] = "file", *both, about.st_size, digest_of(path.read_bytes()).hex()
    return found
