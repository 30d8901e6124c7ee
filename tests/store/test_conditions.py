"""Preconditions: the table of RFC 9110, and what S3 answers."""

import pytest

from couchestord.errors import Error, NoSuchKey, NotModified, PreconditionFailed
from couchestord.io.catalog.read import EntryRow
from couchestord.model import Conditions
from couchestord.store.conditions import check_read, check_source, check_write

S = 10**9
ROW = EntryRow(16, 16, 3, b"\xaa" * 16, 100 * S + 7, 0, None)
MINE, OTHER = "aa" * 16, "bb" * 16
C = Conditions


@pytest.mark.parametrize(
    ("conditions", "there", "refusal"),
    [
        (C(), True, None),
        (C(), False, None),
        (C(if_match=(MINE,)), True, None),
        (C(if_match=(OTHER, MINE)), True, None),
        (C(if_match=("*",)), True, None),
        (C(if_match=(OTHER,)), True, PreconditionFailed),
        (C(if_match=(MINE,)), False, NoSuchKey),
        (C(if_match=("*",)), False, NoSuchKey),
        (C(if_none_match=("*",)), True, PreconditionFailed),
        (C(if_none_match=("*",)), False, None),
        (C(if_none_match=(MINE,)), True, PreconditionFailed),
        (C(if_none_match=(OTHER,)), True, None),
    ],
)
def test_writes(conditions: Conditions, there: bool, refusal: type[Error] | None) -> None:
    if refusal is None:
        check_write(conditions, ROW if there else None, b"key")
    else:
        with pytest.raises(refusal):
            check_write(conditions, ROW if there else None, b"key")


READS: list[tuple[Conditions, type[Error] | None]] = [
    (C(), None),
    (C(if_match=(OTHER,)), PreconditionFailed),
    (C(if_match=(MINE,)), None),
    (C(if_match=("*",), if_unmodified_since_ns=1), None),
    (C(if_unmodified_since_ns=99 * S), PreconditionFailed),
    (C(if_unmodified_since_ns=100 * S), None),
    (C(if_none_match=(MINE,)), NotModified),
    (C(if_none_match=("*",)), NotModified),
    (C(if_none_match=(OTHER,), if_modified_since_ns=200 * S), None),
    (C(if_modified_since_ns=100 * S), NotModified),
    (C(if_modified_since_ns=99 * S), None),
    (C(if_match=(OTHER,), if_none_match=(MINE,)), PreconditionFailed),
]


@pytest.mark.parametrize(("conditions", "refusal"), READS)
def test_reads(conditions: Conditions, refusal: type[Error] | None) -> None:
    if refusal is None:
        check_read(conditions, ROW)
        check_source(conditions, ROW)
        return
    with pytest.raises(refusal):
        check_read(conditions, ROW)
    with pytest.raises(PreconditionFailed):
        check_source(conditions, ROW)
