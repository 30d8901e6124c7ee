"""Settings into backends: what is said when they are wrong, and where secrets come from."""

from dataclasses import replace
from pathlib import Path

import pytest
from certificates import make_certificate
from scripted_server import answer, error, serving

from couchestord.clock import SystemClock
from couchestord.errors import ConfigError, RemoteDenied
from couchestord.remote.folder import FolderBackend
from couchestord.remote.opening import RemoteSettings, open_backend
from couchestord.remote.s3 import S3Backend


def settings_in(folder: Path, url: str = "http://127.0.0.1:1/box") -> RemoteSettings:
    (folder / "secret").write_text("hidden-secret\n")
    (folder / "token").write_text("hidden-token")
    return RemoteSettings(url, access_key="AK", secret_key_file=folder / "secret", session_token_file=folder / "token")


async def test_a_folder_and_a_bucket(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    folder = open_backend(RemoteSettings(f"file://{tmp_path}/a%20b"), SystemClock())
    assert isinstance(folder, FolderBackend)
    assert folder.name == f"{tmp_path}/a b"
    bucket = open_backend(settings_in(tmp_path, "https://s3.example.com/box/x/"), SystemClock())
    assert isinstance(bucket, S3Backend)
    assert bucket.name == "https://s3.example.com/box/x"


async def test_secrets_are_read_from_files_and_again_when_they_are_refused(tmp_path: Path) -> None:
    async with serving([answer(200), error(403, "ExpiredToken"), answer(200)]) as server:
        settings = settings_in(tmp_path, f"http://127.0.0.1:{server.port}/box")
        backend = open_backend(settings, SystemClock())
        await backend.put_new("a", [b"x"])
        (tmp_path / "token").write_text("another-token\n")
        await backend.put_new("b", [b"x"])
        await backend.aclose()
    assert [asked.headers["x-amz-security-token"] for asked in server.asked] == [
        "hidden-token",
        "hidden-token",
        "another-token",
    ]


async def test_a_secret_that_goes_while_it_runs_is_an_error_of_the_call(tmp_path: Path) -> None:
    async with serving([error(403, "ExpiredToken")]) as server:
        backend = open_backend(settings_in(tmp_path, f"http://127.0.0.1:{server.port}/box"), SystemClock())
        (tmp_path / "secret").unlink()
        with pytest.raises(RemoteDenied, match="secret"):
            await backend.put_new("a", [b"x"])
        await backend.aclose()


@pytest.mark.parametrize("url", ["", "s3://box", "https://h", "file://host/x", "https://AK:hidden-secret@h/box", "//["])
def test_urls_that_cannot_be_used(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        open_backend(settings_in(tmp_path, url), SystemClock())
    assert "hidden" not in str(raised.value)


def test_the_folder_of_another_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file:///FOLDER"):
        open_backend(RemoteSettings(f"file://host{tmp_path}"), SystemClock())


def test_a_bucket_needs_a_key(tmp_path: Path) -> None:
    good = settings_in(tmp_path)
    for bad in (replace(good, access_key=""), replace(good, secret_key_file=None)):
        with pytest.raises(ConfigError, match="secret key"):
            open_backend(bad, SystemClock())


@pytest.mark.parametrize("content", [b"", b"\n", b"hidden\nhidden", b"hid\xffden", b"x" * 20_000, None])
def test_files_that_hold_no_secret(tmp_path: Path, content: bytes | None) -> None:
    bad = tmp_path / "bad"
    if content is not None:
        bad.write_bytes(content)
    good = settings_in(tmp_path)
    for settings in (replace(good, secret_key_file=bad), replace(good, session_token_file=bad)):
        with pytest.raises(ConfigError) as raised:
            open_backend(settings, SystemClock())
        assert str(bad) in str(raised.value)
        assert "hid" not in str(raised.value).replace(str(bad), "")


@pytest.mark.parametrize(("mode", "is_open"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_secret_that_others_may_read_is_warned_of(
    mode: int, is_open: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_in(tmp_path)
    (tmp_path / "secret").chmod(mode)
    (tmp_path / "token").chmod(0o600)
    open_backend(settings, SystemClock())
    assert [record.levelname for record in caplog.records] == ["WARNING"] * is_open
    assert (str(tmp_path / "secret") in caplog.text) == is_open
    assert "hidden" not in caplog.text


async def test_certificates_to_trust(tmp_path: Path) -> None:
    trusted = make_certificate(tmp_path, "IP:127.0.0.1")
    async with serving([answer(200)], trusted.server()) as server:
        url = f"https://127.0.0.1:{server.port}/box"
        backend = open_backend(replace(settings_in(tmp_path, url), ca_file=trusted.certificate), SystemClock())
        await backend.put_new("a", [b"x"])
        await backend.aclose()
    for bad in (tmp_path / "none", tmp_path / "secret"):
        with pytest.raises(ConfigError, match="certificates"):
            open_backend(replace(settings_in(tmp_path, url), ca_file=bad), SystemClock())
