"""What the documentation quotes exists: commands, settings, metrics, files that it links or names.

Seen to fail with: an option misspelt in a quoted command, a key of the configuration misspelt, a link to a page that is
not there, a test file that is not there, a metric left out, a line to paste that reads otherwise.
"""

import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from couchestord.cli.credentials import lines_to_paste
from couchestord.cli.entry import build_parser
from couchestord.config import S3Config, setting_names
from couchestord.frontends.s3.routes import Operation
from couchestord.io.catalog.schema import TABLES
from couchestord.metrics import Metrics, Snapshot
from couchestord.parsing import Address
from couchestord.replica.door import SOCKET_NAME

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"(?m)^\s*(?:\|.*?`)?couchestord ([a-z].*)$|`couchestord ([a-z][^`]*)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
REPOSITORY_FILE = re.compile(r"`((?:couchestord|tests|docs|bench|systemd|deploy)/[\w./-]+)`")
SETTING = re.compile(r"`((?:store|journal|cache|s3|metrics|health|log)\.[a-z_0-9]+)")
METRIC = re.compile(r"`(couchestord_[a-z0-9_]+)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def quoted_commands(page: Path) -> Iterator[list[str]]:
    """Without comments and what a shell does behind them; in running text a command may be merely named."""
    for match in COMMAND.finditer(page.read_text(encoding="utf-8")):
        line = (match[1] or match[2]).split("&&")[0].split("|")[0].split("`")[0]
        words = shlex.split(line, comments=True)
        if match[1] or len(words) > 1:
            yield words


def test_there_are_pages_to_check() -> None:
    assert len(PAGES) > 8
    assert sum(1 for page in PAGES for _ in quoted_commands(page)) > 15


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_quoted_commands_parse(page: Path) -> None:
    for words in quoted_commands(page):
        try:
            build_parser().parse_args(words)
        except SystemExit:
            pytest.fail(f"{name_of(page)}: couchestord {shlex.join(words)}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_linked_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in REPOSITORY_FILE.findall(text) if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_named_exist(page: Path) -> None:
    named = set(SETTING.findall(page.read_text(encoding="utf-8")))
    modules = {name for name in named if (ROOT / "couchestord" / name.replace(".", "/")).with_suffix(".py").exists()}
    assert named - set(setting_names()) - modules - {SOCKET_NAME} == set()


def test_documented_metrics_are_those_there_are() -> None:
    metrics = Metrics()
    metrics.count_request("GetObject", 200, 0.1, 1, 1)
    l3: dict[str, float] = defaultdict(float, blobs=1.0)
    mounts = {"count": 1, "late": 0}
    snapshot = Snapshot(
        "1", "zfec", "healthy", {"good": 1}, {"a": 1}, 1, 1, {"open": 1}, 1, {}, 1, l3=l3, mounts=mounts
    )
    types = re.findall(r"(?m)^# TYPE (couchestord_\w+)", metrics.render(snapshot).decode())
    documented = set(METRIC.findall((ROOT / "docs" / "operations.md").read_text(encoding="utf-8")))
    assert set(types) == documented


def test_the_first_page_shows_the_lines_to_paste() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    told = lines_to_paste(Path("/here/data"), Address("127.0.0.1", 9000), S3Config()).replace("/here/", "$PWD/")
    lines = [line.strip() for line in told.splitlines() if line.startswith("  ")]
    assert len(lines) > 5
    assert [line for line in lines if line not in page] == []


def test_every_operation_of_s3_is_documented() -> None:
    page = (ROOT / "docs" / "s3.md").read_text(encoding="utf-8")
    assert [operation for operation in Operation if operation not in page] == []


def test_every_table_of_the_catalog_is_documented() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert [name for name in TABLES if f"`{name}`" not in page] == []


def test_every_decision_is_listed() -> None:
    listed = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "docs" / "adr").glob("0*.md") if f"({path.name})" not in listed] == []
