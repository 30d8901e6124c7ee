"""Plants bugs into a copy of the product, one at a time, and says which tests noticed. No part of any suite.

    python tests/support/planted.py [WORD ...]      only bugs whose name holds one of the words

A bug is one change of one line, of the kind that is made when code is changed: see `planted_bugs.py`. The tests named
beside it must fail. Exit code 1 when one of them passes, or when the text of a bug is no longer found in its file.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from planted_bugs import BUGS, PlantedBug

ROOT = Path(__file__).resolve().parents[2]
KEPT = ("couchestord", "tests", "pyproject.toml")
TESTS_S_MAX = 1800


def main(words: list[str]) -> int:
    bugs = [bug for bug in BUGS if not words or any(word in bug.name for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="couchestord-planted-") as name:
        copy = Path(name) / "tree"
        copy.mkdir()
        for kept in KEPT:
            source = ROOT / kept
            if source.is_dir():
                shutil.copytree(source, copy / kept, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / kept)
        for bug in bugs:
            began = time.monotonic()
            said = run(bug, copy)
            missed += not said.startswith("noticed")
            print(f"{bug.name:45} {time.monotonic() - began:4.0f} s  {said}", flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} bugs were noticed")
    return 1 if missed else 0


def run(bug: PlantedBug, copy: Path) -> str:
    """Plant, test, take it out again."""
    path = copy / "couchestord" / bug.file
    text = path.read_text()
    if text.count(bug.old) != 1:
        return f"STALE: found {text.count(bug.old)} times in {bug.file}: {bug.old}"
    path.write_text(text.replace(bug.old, bug.new))
    try:
        line = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "", f"--basetemp={copy.parent / 'tmp'}"]
        line += ["--hypothesis-profile=unshrunk", *bug.tests]
        done = subprocess.run(line, cwd=copy, capture_output=True, text=True, check=False, timeout=TESTS_S_MAX)
    except subprocess.TimeoutExpired:
        return f"MISSED, pytest did not end within {TESTS_S_MAX} s; what it started may still run"
    finally:
        path.write_text(text)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR tests"))]
    if done.returncode == 1 and failed:
        return f"noticed: {failed[0][:200]}"
    return f"MISSED, pytest ended with {done.returncode}: {done.stdout[-300:]!r}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
