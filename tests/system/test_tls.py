"""A daemon that serves S3 under TLS, and the clients that people use."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import urllib3
from certificates import make_certificate
from daemon import QUICK, node, with_workers
from workload import BUCKET, content, listing, read

SIZES = (0, 1, 5000, 128 << 10, 700_001, 20 << 20)


@pytest.mark.parametrize("workers", [0, 2])
def test_clients_use_a_store_under_tls(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_certificate(tmp_path, "IP:127.0.0.1")
    tls = {"COUCHESTORD_S3__TLS_CERTIFICATE": str(made.certificate), "COUCHESTORD_S3__TLS_KEY": str(made.key)}
    monkeypatch.setenv("AWS_CA_BUNDLE", str(made.certificate))
    with node(tmp_path / "data", with_workers({**QUICK, **tls}, workers)) as store:
        url = store.addresses["s3"]
        assert url.startswith("https://")
        client = store.s3()
        client.create_bucket(Bucket=BUCKET)
        bodies = {f"key/{size}": content(str(size), size) for size in SIZES}
        for key, body in bodies.items():
            client.put_object(Bucket=BUCKET, Key=key, Body=body)
        for _ in range(2):
            for key, body in bodies.items():
                assert read(client, BUCKET, key) == body
        client.upload_file(_file(tmp_path / "large", 40 << 20), BUCKET, "multipart")
        client.download_file(BUCKET, "multipart", str(tmp_path / "back"))
        assert _digest(tmp_path / "back") == _digest(tmp_path / "large")
        piece = client.get_object(Bucket=BUCKET, Key="multipart", Range="bytes=9999999-10099999")["Body"].read()
        assert piece == (tmp_path / "large").read_bytes()[9_999_999:10_100_000]

        signed = client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "key/5000"})
        with urllib3.PoolManager(ca_certs=str(made.certificate)) as pool:
            assert pool.request("GET", signed).data == bodies["key/5000"]
        with (
            urllib3.PoolManager() as pool,
            pytest.raises(urllib3.exceptions.MaxRetryError, match="VERIFY_FAILED"),
        ):
            pool.request("GET", signed, retries=0)

        (tmp_path / "again").mkdir()
        line = ("s5cmd", "--endpoint-url", url, "cp", f"s3://{BUCKET}/key/*", tmp_path / "again/")
        store.tool(*line, trusted=made.certificate)
        for size in SIZES:
            assert (tmp_path / f"again/{size}").read_bytes() == bodies[f"key/{size}"]
        store.tool("rclone", "--ca-cert", made.certificate, "copy", tmp_path / "again", f":s3:{BUCKET}/rclone")
        assert {f"rclone/{size}" for size in SIZES} < set(listing(client, BUCKET))
        assert read(client, BUCKET, "rclone/700001") == bodies["key/700001"]


def test_a_daemon_whose_certificate_is_no_good_says_so_and_ends(tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "IP:127.0.0.1")
    other = tmp_path / "other"
    other.mkdir()
    key = make_certificate(other, "IP:127.0.0.1").key
    for workers in ("0", "2"):
        settings = {"TLS_CERTIFICATE": str(made.certificate), "TLS_KEY": str(key), "WORKERS": workers}
        done = subprocess.run(
            [sys.executable, "-m", "couchestord", "up", "--data", tmp_path / "data"],
            env={**os.environ, **{f"COUCHESTORD_S3__{name}": value for name, value in settings.items()}},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert "are no pair" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def _file(path: Path, size: int) -> str:
    path.write_bytes(content("a file", size))
    return str(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
