from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from couchestord import config
from couchestord.cache import CACHES_OFF, CacheConfig
from couchestord.config import Config, load, setting_names
from couchestord.daemon import store_options
from couchestord.errors import ConfigError
from couchestord.parsing import Address, parse_address, parse_duration, parse_size

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "config.md"


def write(folder: Path, text: str) -> Path:
    path = folder / "couchestord.toml"
    path.write_text(text)
    return path


def test_nothing_set_gives_the_defaults() -> None:
    assert load(None, {}) == Config()


def test_documented_example_is_every_key_with_its_default(tmp_path: Path) -> None:
    example = DOCUMENT.read_text().split("```toml\n")[1].split("```")[0]
    assert load(write(tmp_path, example), {}) == Config()
    section, names = "", []
    for line in example.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line:
            names.append(f"{section}.{line.split()[0]}")
    assert names == setting_names()


def test_options_win_over_environment_over_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[store]\nk = 2\nm = 1\n[s3]\nregion = "a"\n')
    found = load(path, {"COUCHESTORD_STORE__K": "3", "COUCHESTORD_S3__REGION": "b"}, {"s3.region": "c"})
    assert (found.store.k, found.store.m, found.s3.region) == (3, 1, "c")


def test_environment_list_and_names_that_are_not_ours() -> None:
    found = load(None, {"COUCHESTORD_STORE__DISKS": "/a, /b", "COUCHESTORD_PORT": "tcp://1.2.3.4:1", "HOME": "/x"})
    assert found.store.disks == (Path("/a"), Path("/b"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[store]\nengin = 'zfec'\n", ["store.engin is unknown", "store.engine"]),
        ("[s3]\nadress = ':1'\n", ["s3.adress is unknown; did you mean s3.address?"]),
        ("[store]\nsize_byte = 4\n", ["did you mean journal.size_bytes?"]),
        ("[stor]\nk = 4\n", ["unknown section [stor]", "[store]"]),
        ("[stor]\n", ["unknown section [stor]", "[store]"]),
        ("k = 4\n", ["'k' stands outside a section", "store.k"]),
        ("[xyzzy]\na = 1\n", ["unknown section [xyzzy]", "[journal]"]),
        ("[store]\nk = 'four'\n", ["store.k 'four'", "whole number"]),
        ("[store]\nk = true\n", ["store.k True", "whole number"]),
        ("[store]\nk = 4.5\n", ["store.k 4.5", "whole number"]),
        ("[store]\nstripe_size = '1 Mo'\n", ["store.stripe_size '1 Mo'", "MiB"]),
        ("[store]\nstripe_size = 10\n", ["store.stripe_size 10", "less than 4096"]),
        ("[store]\ndisks = 3\n", ["store.disks 3", "list"]),
        ("[store]\ndisks = ['a', './a']\n", ["twice"]),
        ("[store]\ndisk_classes = 'ssd, any'\n", ["store.disk_classes", "other than 'any'"]),
        ("[store]\ndisk_classes = ['a b']\n", ["store.disk_classes", "names"]),
        ("[store]\nm = 3\n", ["journal.replication_factor is 3", "at least 4"]),
        ("[store]\nmin_healthy_shards = 3\n", ["min_healthy_shards is 3", "k = 4"]),
        ("[l3]\nmode = 'cache'\n", ["l3.url is not set", "https://"]),
        ("[l3]\nmode = 'on'\n", ["l3.mode 'on'", "off, cache, tiered"]),
        ("[l3]\nblob_size = '65 MiB'\n", ["l3.blob_size", "64 MiB"]),
        ("[l3]\nevict_to_percent = 81\n", ["l3.evict_to_percent is 81", "= 80"]),
        ("[log]\nformat = 'yaml'\n", ["log.format 'yaml'", "text, json"]),
        ("[s3]\naddress = '9000'\n", ["s3.address '9000'", "127.0.0.1:9000"]),
        ("[journal]\ndestage_interval = []\n", ["journal.destage_interval []"]),
        ("[store\n", ["is not TOML"]),
    ],
)
def test_error_names_the_key_and_what_to_write(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), {})
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message


def test_error_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[store]\nk = 'four'\n")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert str(caught.value).startswith(f"{path}: store.k")


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml", {})


def test_unknown_environment_variable_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"COUCHESTORD_STORE__KK: store\.kk is unknown; did you mean store\.k"):
        load(None, {"COUCHESTORD_STORE__KK": "4"})


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("10 GiB", 10 << 30), ("1.5KiB", 1536), (4096, 4096), ("4096", 4096), ("2 MB", 2_000_000), (" 1 b ", 1)],
)
def test_sizes(text: object, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 GiBs", "1.0001 b", "1e9", True, None, "\uff11 GiB"])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(ValueError, match=r"unit|whole number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30 s", 30.0), (5, 5.0), ("250 ms", 0.25), ("2min", 120.0), ("1 d", 86400.0)]
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["127.0.0.1:9000", "localhost:0", "[::1]:65535"])
def test_addresses_read_back_as_written(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize("text", ["9000", "a:", "a:x", "a:65536", "::1:9000", "a:-1", "a:\uff11"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        parse_address(text)


def test_bare_port_means_all_interfaces() -> None:
    assert parse_address(":9000") == Address("0.0.0.0", 9000)


@given(st.integers(0, 1 << 60))
def test_whole_bytes_read_back(size_bytes: int) -> None:
    assert parse_size(f"{size_bytes} B") == size_bytes


def test_every_default_would_be_accepted_if_written() -> None:
    for section in fields(Config):
        for setting in config._settings(section).values():
            assert setting.metadata["parse"](setting.default) == setting.default


def test_every_setting_of_store_and_journal_reaches_the_store() -> None:
    text = {"store.segment_size": "8 MiB", "store.reserve": "1 MiB", "store.disk_deadline": "2 s"}
    text |= {"store.monitor_interval": "0.5 s", "store.rebuild_grace": "3 s", "store.background_rate": "9 MiB"}
    text |= {"store.snapshot_size_min": "5 MiB", "journal.file_size": "4 MiB", "journal.preallocate": "64 KiB"}
    found = store_options(load(None, {}, text))
    assert (found.segment_bytes, found.reserve_bytes, found.disk_deadline_s) == (8 << 20, 1 << 20, 2.0)
    assert (found.monitor_interval_s, found.rebuild_grace_s, found.background_bytes_per_s) == (0.5, 3.0, 9 << 20)
    assert (found.snapshot_bytes_min, found.journal.file_bytes, found.journal.preallocate_bytes) == (
        *(5 << 20, 4 << 20, 64 << 10),
    )


def test_caches_are_set_by_their_section(tmp_path: Path) -> None:
    text = (
        f"[cache]\nl1_size = '64 MiB'\nl1_shards = 4\nl2_path = '{tmp_path}'\nl2_size = '1 GiB'\n"
        "l2_shared_device = true\ncompression = 'none'\n"
    )
    found = store_options(load(write(tmp_path, text), {})).cache
    assert found == CacheConfig(64 << 20, 4, tmp_path, 1 << 30, "none", True)
    assert store_options(load(None, {}, {"cache.l1_size": 0})).cache == CACHES_OFF
    assert 0 < store_options(Config()).cache.l1_bytes <= 128 << 20


@pytest.mark.parametrize(
    "wrong", [{"cache.l2_size": "1 GiB"}, {"cache.l1_size": 0, "cache.l2_size": 1}, {"cache.l1_shards": 1024}]
)
def test_caches_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"\[cache\]: .*L[12]"):
        store_options(load(None, {}, wrong))
