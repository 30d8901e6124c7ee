import pytest

from couchestord.cli import text


def test_table_aligns_and_has_no_trailing_blanks() -> None:
    assert text.table(["A", "LONG"], [["xyz", 1], ["x", None]]) == "A    LONG\nxyz  1\nx    -"


def test_name_cannot_write_over_the_terminal() -> None:
    shown = text.buckets([{"bucket": "a\x1b[2J\nb", "owner": "ann", "policy": "de\x1bfault"}])
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2


def test_tree_is_a_line_per_fact() -> None:
    value = {"engine": "isal", "disks": [{"disk": 0, "state": "present"}, {"disk": 1, "state": "missing"}]}
    assert text.tree({**value, "jobs": [], "journal": {"bytes": 5, "full": False}, "odd": [1, {"a": [2]}]}) == (
        "engine: isal\n"
        "disks:\n"
        "  DISK  STATE\n"
        "  0     present\n"
        "  1     missing\n"
        "jobs: -\n"
        "journal:\n"
        "  bytes: 5\n"
        "  full: no\n"
        "odd:\n"
        "  - 1\n"
        "  -\n"
        "    a:\n"
        "      - 2"
    )


def test_status_begins_with_health_and_reasons() -> None:
    shown = text.status({"health": {"state": "degraded", "reasons": ["disk-1 is missing"]}, "engine": "zfec"})
    assert shown.splitlines()[:2] == ["degraded", "  - disk-1 is missing"]
    assert "engine: zfec" in shown


def test_keys_show_secrets_only_when_they_are_there() -> None:
    assert text.keys([{"user": "ann", "access_key": "AK"}]) == "USER  ACCESS KEY\nann   AK"
    assert "SK" in text.keys([{"user": "ann", "access_key": "AK", "secret_key": "SK"}])


@pytest.mark.parametrize(
    ("show", "word"), [(text.keys, "key add"), (text.buckets, "bucket create"), (text.caches, "l1_size")]
)
def test_nothing_says_what_to_do(show: text.Show, word: str) -> None:
    assert word in show([])


def test_a_warm_up_says_what_it_left() -> None:
    assert text.warmed({"objects": 3, "bytes": 9, "unreadable": 0}) == "3 objects, 9 bytes are in the caches"
    shown = text.warmed({"objects": 3, "bytes": 9, "unreadable": 1, "all": False})
    assert "1 could not be read" in shown
    assert "there are more objects" in shown


def test_what_a_node_that_was_made_anew_lacks_is_named() -> None:
    names = [{"bucket": "box", "key": f"{number}\n", "version": None} for number in range(21)]
    names[1]["version"] = "00000000000000aa"
    shown = text.remade(
        {
            "store_id": "ab",
            "published_ns": 1_700_000_000_000_000_000,
            "copied_extents": 7,
            "copied_bytes": 8,
            "blobs": 3,
            "missing_blobs": 2,
            "lost_extents": 40,
            "lost_bytes": 50,
            "lost_parts": 6,
            "lost_objects": 1001,
            "lost_names": names,
        }
    ).splitlines()
    assert shown[0] == "the store ab was made anew, as of 2023-11-14T22:13:20+00:00; next: couchestord serve"
    assert shown[2] == "2 of these blobs are not in the bucket"
    assert shown[3].endswith("lost: those of 1001 objects, and 6 parts of uploads")
    assert shown[4] == r'lost  box/"0\n"'
    assert shown[5] == r'lost  box/"1\n" (version 00000000000000aa)'
    assert len(shown) == 25
    assert shown[24] == "lost  and 981 more: --json names up to a thousand"
