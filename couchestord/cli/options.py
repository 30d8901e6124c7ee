"""Options that commands share, and the configuration they amount to."""

import argparse
import os
from pathlib import Path
from typing import Any, Final

from couchestord import config, logs

Commands = Any  # argparse's class of sub-parsers has no public name

_DISKS_COUNT_MAX: Final = 192
_SETTINGS: Final = {
    "data": "store.data",
    "shards_per_disk": "store.shards_per_disk",
    "s3_addr": "s3.address",
    "workers": "s3.workers",
    "metrics_addr": "metrics.address",
    "health_addr": "health.address",
    "log_level": "log.level",
    "log_format": "log.format",
}
"""Option to the setting that it overrides."""


def add_command(commands: Commands, name: str, help_: str, examples: str) -> argparse.ArgumentParser:
    """A command, with --json and with examples below its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_,
        description=f"{help_[0].upper()}{help_[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def add_store_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR", type=Path, help="the data folder (default: the configuration's, ./data)"
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="a TOML file, see docs/config.md")


def add_server_options(parser: argparse.ArgumentParser) -> None:
    for name, default in (("s3", "127.0.0.1:9000"), ("metrics", "127.0.0.1:8080"), ("health", "127.0.0.1:8081")):
        parser.add_argument(f"--{name}-addr", metavar="HOST:PORT", help=f"default {default}; port 0 takes a free one")
    parser.add_argument("--workers", metavar="N", help="processes that serve S3 beside the one that writes, or auto")
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info (default), warning or error")
    parser.add_argument("--log-format", metavar="FORMAT", help="text (default) or json")


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trust-s3-owners",
        action="store_true",
        help="who puts an object over S3 says whom its file belongs to (metadata uid and gid)",
    )


def parse_disks(text: str) -> int:
    """Of an option. Raises argparse.ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _DISKS_COUNT_MAX:
        raise argparse.ArgumentTypeError(f"a number from 1 to {_DISKS_COUNT_MAX} is needed")
    return int(text)


def load_config(options: argparse.Namespace) -> config.Config:
    """File, environment, options. Raises ConfigError."""
    given = {setting: getattr(options, name, None) for name, setting in _SETTINGS.items()}
    overrides = {setting: value for setting, value in given.items() if value is not None}
    return config.load(getattr(options, "config", None), os.environ, overrides)


def quiet_logs(stream: Any) -> None:
    """For commands that print a result: `status` tells what is wrong, a log beside it only what failed."""
    logs.configure("error", "text", stream)
