from pathlib import Path

import pytest

from couchestord.cli import entry
from couchestord.cli.options import load_config
from couchestord.parsing import Address


def test_command_line_wins_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[s3]\naddress = "127.0.0.1:1"\n[metrics]\naddress = "127.0.0.1:2"\n[log]\nlevel = "error"\n')
    monkeypatch.setenv("COUCHESTORD_METRICS__ADDRESS", "127.0.0.1:3")
    monkeypatch.setenv("COUCHESTORD_LOG__LEVEL", "warning")
    options = entry.build_parser().parse_args(["serve", "--config", str(path), "--log-level", "debug"])
    config = load_config(options)
    assert (config.s3.address, config.metrics.address) == (Address("127.0.0.1", 1), Address("127.0.0.1", 3))
    assert config.log.level == "debug"


def test_contract_of_up() -> None:
    line = "up --data D --disks 7 --s3-addr 127.0.0.1:1 --metrics-addr 127.0.0.1:2 --health-addr 127.0.0.1:3"
    options = entry.build_parser().parse_args(line.split())
    config = load_config(options)
    assert (options.disks, config.store.data) == (7, Path("D"))
    assert [str(part.address) for part in (config.s3, config.metrics, config.health)] == [
        *("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
    ]


def test_nothing_given_stays_on_loopback() -> None:
    config = load_config(entry.build_parser().parse_args(["up"]))
    assert [str(part.address) for part in (config.s3, config.metrics, config.health)] == [
        *("127.0.0.1:9000", "127.0.0.1:8080", "127.0.0.1:8081")
    ]
