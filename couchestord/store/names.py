"""What a mount calls the entries of a directory. Pure.

The tree of keys has entries that no file system can show: an object beside a directory of its name, names that are
empty, `.` or `..`, longer than 255 bytes or with a zero byte. These, and whatever begins as such a name does, are shown
as `.couchestord~` and the number of what they name, in hex. So each entry of a directory has a name, no two have the
same, and each leads back.
"""

from typing import Final

ESCAPE: Final = b".couchestord~"
NAME_BYTES_MAX: Final = 255
_NUMBERS_END: Final = 1 << 63


def shown(name: bytes, id_: int, *, has_twin: bool = False) -> bytes:
    """What the entry `name` of the tree, which names the file or directory `id_`, is called. `has_twin`: it is an
    object, and there is a directory of its name beside it.
    """
    bare = name[:-1] if name.endswith(b"/") else name
    return ESCAPE + b"%x" % id_ if has_twin or not is_plain(bare) else bare


def is_plain(name: bytes) -> bool:
    """Whether an entry can be called so as it is, and so be made."""
    return (
        0 < len(name) <= NAME_BYTES_MAX
        and name not in (b".", b"..")
        and not is_escaped(name)
        and b"\0" not in name
        and b"/" not in name
    )


def is_escaped(name: bytes) -> bool:
    """Whether an entry that is shown so is called otherwise, and may be shown as it is called later."""
    return name.startswith(ESCAPE)


def escaped(name: bytes) -> int | None:
    """The number in a name that `shown` has escaped; None for others."""
    if not is_escaped(name):
        return None
    digits = name[len(ESCAPE) :]
    try:
        id_ = int(digits, 16)
    except ValueError:
        return None
    return id_ if 0 <= id_ < _NUMBERS_END and b"%x" % id_ == digits else None
