"""What goes over a connection. What servers do to it is in `test_s3.py`."""

import random

from couchestord.remote.exchange import _SEND_BYTES, _pieces


def test_short_parts_are_sent_together_and_long_ones_without_a_copy() -> None:
    rng = random.Random(3)
    lengths = [8, 16_384] * 100 + [_SEND_BYTES, 2 * _SEND_BYTES + 1, 0, 5]
    parts = [rng.randbytes(length) for length in lengths]
    pieces = list(_pieces(parts))
    assert b"".join(pieces) == b"".join(parts)
    assert len(pieces) <= sum(lengths) // _SEND_BYTES + 3
    assert max(len(piece) for piece in pieces) == _SEND_BYTES
    assert sum(1 for piece in pieces if isinstance(piece, memoryview)) == 3
