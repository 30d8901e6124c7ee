import configparser
import os
import stat
from pathlib import Path

import pytest

from couchestord.cli.credentials import lines_to_paste, path_in, write
from couchestord.config import S3Config
from couchestord.model import AccessKey
from couchestord.parsing import Address

KEY = AccessKey("admin", "AKID", "s3cr3t+/=%x", 0)


def test_file_is_private_and_what_clients_read(tmp_path: Path) -> None:
    write(tmp_path, KEY)
    path = path_in(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    parsed = configparser.RawConfigParser()
    parsed.read(path)
    assert dict(parsed["default"]) == {"aws_access_key_id": "AKID", "aws_secret_access_key": "s3cr3t+/=%x"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["credentials"]


def test_copy_follows_the_store(tmp_path: Path) -> None:
    write(tmp_path, KEY)
    write(tmp_path, AccessKey("admin", "OTHER", "y", 0))
    assert "OTHER" in path_in(tmp_path).read_text()
    assert "AKID" not in path_in(tmp_path).read_text()


def test_file_that_became_public_is_made_private(tmp_path: Path) -> None:
    write(tmp_path, KEY)
    path_in(tmp_path).chmod(0o644)
    write(tmp_path, KEY)
    assert stat.S_IMODE(path_in(tmp_path).stat().st_mode) == 0o600


def test_file_is_left_alone_when_it_is_right(tmp_path: Path) -> None:
    write(tmp_path, KEY)
    before = path_in(tmp_path).stat().st_ino
    write(tmp_path, KEY)
    assert path_in(tmp_path).stat().st_ino == before


def test_leftover_of_a_crash_is_no_trap(tmp_path: Path) -> None:
    """A link left where the new file is written first must not lead the secret elsewhere."""
    victim = tmp_path / "victim"
    victim.write_text("")
    os.symlink(victim, tmp_path / "credentials.new")
    write(tmp_path, KEY)
    assert victim.read_text() == ""
    assert "AKID" in path_in(tmp_path).read_text()


def test_file_that_cannot_be_written_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The store has the key, and a folder that is full must not keep its daemon from starting."""
    write(tmp_path / "none", KEY)
    assert "cannot be written" in caplog.text
    assert KEY.secret_key not in caplog.text


def test_file_of_another_encoding_is_replaced(tmp_path: Path) -> None:
    path_in(tmp_path).write_bytes(b"\xff")
    write(tmp_path, KEY)
    assert "AKID" in path_in(tmp_path).read_text()


def test_lines_name_every_client_and_no_secret(tmp_path: Path) -> None:
    write(tmp_path, KEY)
    lines = lines_to_paste(tmp_path / "with space", Address("0.0.0.0", 9000), S3Config(region="eu-1"))
    for word in ("aws s3", "boto3", "s5cmd", "rclone", "http://127.0.0.1:9000", "eu-1", f"'{tmp_path}/with space/"):
        assert word in lines
    assert KEY.secret_key not in lines


def test_lines_for_a_server_under_tls_name_what_to_trust(tmp_path: Path) -> None:
    under_tls = S3Config(tls_certificate=tmp_path / "certificate.pem", tls_key=tmp_path / "key.pem")
    lines = lines_to_paste(tmp_path, Address("127.0.0.1", 9000), under_tls)
    assert "http://" not in lines
    for word in ("https://127.0.0.1:9000", f"AWS_CA_BUNDLE={tmp_path}/certificate.pem", "--ca-cert"):
        assert word in lines
