"""A fast lane for heads that every parser reads alike.

`read_head` accepts only what is provably trivial and gives None for all else, which h11 then judges. It never refuses a
request: a head that it does not take is no worse off than without it. Whatever it takes, h11 takes too, with the same
result; a differential test holds the two together.
"""

from typing import Final

from couchestord.frontends.http.messages import Head

_PRINTABLE: Final = bytes(range(0x20, 0x7F))
_TOKEN: Final = b"-!#$%&'*+.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_METHODS: Final = frozenset({b"GET", b"HEAD", b"PUT", b"POST", b"DELETE"})
_NOT_TRIVIAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
_LENGTH_DIGITS_MAX: Final = 18


def read_head(raw: bytes) -> Head | None:
    """The head `raw`, with the empty line at its end, or None when it is not trivial."""
    lines = raw[:-4].split(b"\r\n")
    # No TAB, no other control character, nothing past ASCII; each CR and LF is one of a pair that ends a line.
    if not raw.endswith(b"\r\n\r\n") or raw.translate(None, _PRINTABLE) != b"\r\n" * (len(lines) + 1):
        return None
    request_line = lines[0].split(b" ")
    if len(request_line) != 3:
        return None
    method, target, version = request_line
    if method not in _METHODS or version != b"HTTP/1.1" or not target:
        return None
    del lines[0]
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            return None
        fields[name.lower()] = value.strip()
    if len(fields) != len(lines) or b"host" not in fields or not _NOT_TRIVIAL.isdisjoint(fields):
        return None
    if b"" in fields or b"".join(fields).translate(None, _TOKEN):
        return None
    if b"connection" in fields and fields[b"connection"].lower() != b"keep-alive":
        return None
    length = fields.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX:
        return None
    return Head(method, target, fields.items(), int(length), fields)
