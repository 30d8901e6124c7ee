"""What programs of one run measured, handed on in a file of JSON lines: a name and a figure, or why there is none."""

import argparse
import json
import os
import platform
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figures:
    """Where figures go. Without a file they go nowhere."""

    path: Path | None = None

    def add(self, name: str, value: float, *, is_full: bool = True) -> None:
        """`is_full`: measured at the size that the goal is about; a short run of less says nothing of that."""
        if is_full:
            self._append({"name": name, "value": value})
        else:
            self.skip(name, "not with --quick")

    def skip(self, name: str, reason: str) -> None:
        """Says why there is no figure of that name, here and in the table of goals."""
        print(f"skipped: {name}: {reason}", flush=True)
        self._append({"name": name, "skipped": reason})

    def _append(self, row: dict[str, object]) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run left: figures, and reasons for those that it skipped."""

    values: dict[str, float]
    skipped: dict[str, str]

    @classmethod
    def load(cls, path: Path) -> "Measured":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return cls(
            {row["name"]: row["value"] for row in rows if "value" in row},
            {row["name"]: row["skipped"] for row in rows if "skipped" in row},
        )


def add_option(parser: argparse.ArgumentParser) -> None:
    """--figures, with a `Figures` as its value."""
    parser.add_argument(
        "--figures", metavar="FILE", type=lambda text: Figures(Path(text)), default=Figures(), help="written to, too"
    )


def circumstances() -> str:
    """One line: when, on what, how busy it was."""
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    build = "with" if optimized else "without"
    loads = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{time.strftime('%d %B %Y, %H:%M')}; {platform.python_implementation()} {platform.python_version()} built "
        f"{build} --enable-optimizations; {len(os.sched_getaffinity(0))} cores; load average {loads}"
    )
