"""URLs of buckets, and keys that are not shown."""

import pytest

from couchestord.errors import InvalidArgument
from couchestord.remote.location import Credentials, Location, parse_location


@pytest.mark.parametrize(
    ("url", "location", "authority"),
    [
        ("https://s3.example.com/box", Location("s3.example.com", 443, True, "box"), "s3.example.com"),
        ("http://127.0.0.1:9000/box/", Location("127.0.0.1", 9000, False, "box"), "127.0.0.1:9000"),
        ("https://s3.example.com/box/a/b", Location("s3.example.com", 443, True, "box", "a/b/"), "s3.example.com"),
        ("http://[::1]:80/box", Location("::1", 80, False, "box"), "[::1]"),
        ("https://h:80/my.box-1/x/", Location("h", 80, True, "my.box-1", "x/"), "h:80"),
    ],
)
def test_urls(url: str, location: Location, authority: str) -> None:
    assert parse_location(url) == location
    assert location.authority == authority
    assert parse_location(str(location)) == location


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3://box",
        "https://s3.example.com",
        "https://s3.example.com/",
        "https:///box",
        "https://h/Box",
        "https://h/b",
        "https://h/box?x=1",
        "https://h/box#x",
        "https://h:99999/box",
        "https://h/box//a",
        "https://h/box/../a",
        "https://h/box/A",
    ],
)
def test_others_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_location(url)


def test_a_key_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_location("https://AK:hidden@h/box")
    assert "hidden" not in str(raised.value)


def test_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(Credentials("AK", "hidden1", "hidden2"))
