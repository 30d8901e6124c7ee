import argparse
import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from couchestord.cli import entry
from couchestord.errors import ConfigError, Error, NoSuchBucket


def commands(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that can be run, with its full name."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield name.strip(), parser
    for group in groups:
        for word, inner in group.choices.items():
            yield from commands(inner, f"{name} {word}")


COMMANDS = dict(commands(entry.build_parser()))


def test_commands_are_those_documented() -> None:
    expected = {"up", "serve", "init", "status", "info", "user add", "key list", "key add", "key remove"}
    assert expected | {"bucket list", "bucket create", "bucket remove"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_by_example(name: str) -> None:
    parser = COMMANDS[name]
    shown = parser.format_help()
    assert f"couchestord {name}" in shown.split("examples:")[1]
    assert "--json" in shown
    assert "--data" in shown
    assert parser.get_default("run") is not None


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name: str) -> None:
    """Those of each command's own help, as far as they call couchestord with nothing from a shell around it."""
    examples = COMMANDS[name].format_help().split("examples:")[1]
    calls = [line.split("couchestord ", 1)[1] for line in examples.splitlines() if "couchestord " in line[:80]]
    assert calls
    for call in calls:
        words = call.split("   ")[0].split("&&")[0].split("|")[0].split()
        entry.build_parser().parse_args(words)


def test_help_tells_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        entry.run(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "exit codes: 0 done; 1 failed" in shown


@pytest.mark.parametrize("call", ["up", "serve", "init", "fsck", "recover", "key list"])
def test_a_folder_one_may_not_look_into(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(folder: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    for look in ("glob", "is_dir", "stat"):
        monkeypatch.setattr(Path, look, refuse)
    ports = ["--s3-addr=127.0.0.1:0", "--metrics-addr=127.0.0.1:0", "--health-addr=127.0.0.1:0"]
    line = [*call.split(), "--data", str(tmp_path), *(ports if call in ("up", "serve") else ())]
    assert entry.run(line) == 1
    assert "Permission denied" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("wrong", [["--json"], ["key", "add", "ann", "--access-key", "K"], ["status", "--nonsense"]])
def test_wrong_command_line_is_told_as_json(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        entry.run([*wrong, "--json"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert json.loads(told.err)["error"]["name"] == "WrongCommandLine"
    assert told.out == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        entry.run(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("couchestord ")


def test_wrong_command_line_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ([], ["key"], ["nonsense"], ["up", "--disk", "6"], ["key", "add", "ann", "--access-key", "K"]):
        with pytest.raises(SystemExit) as ended:
            entry.run(wrong)
        assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(_options: argparse.Namespace) -> None:
        raise error

    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=fail)
    monkeypatch.setattr(entry, "build_parser", lambda **_: parser)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("store.kk is unknown"), 1),
        (NoSuchBucket("store.kk is unknown"), 3),
        (ExceptionGroup("nursery", [ExceptionGroup("inner", [Error("store.kk is unknown")])]), 1),
        (ExceptionGroup("nursery", [OSError(errno.EROFS, "read-only", "file"), Error("store.kk is unknown")]), 1),
    ],
)
def test_error_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    failing(monkeypatch, error)
    assert entry.run([]) == code
    assert capsys.readouterr().err == "couchestord: store.kk is unknown\n"
    assert entry.run(["--json"]) == code
    assert json.loads(capsys.readouterr().err)["error"]["message"] == "store.kk is unknown"


def test_what_the_system_says_of_a_file_is_no_defect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, ExceptionGroup("nursery", [OSError(errno.EROFS, "Read-only file system", "data/catalog")]))
    assert entry.run([]) == 1
    assert capsys.readouterr().err == "couchestord: data/catalog: Read-only file system\n"
    failing(monkeypatch, OSError(errno.EBADF, "Bad file descriptor"))
    with pytest.raises(OSError, match="Bad file"):
        entry.run([])


def test_ctrl_c_is_no_defect_wherever_it_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (KeyboardInterrupt(), BaseExceptionGroup("nursery", [KeyboardInterrupt(), Error("cut off")])):
        failing(monkeypatch, error)
        assert entry.run([]) == 130
    assert capsys.readouterr().err == ""


def test_ctrl_c_while_a_command_is_loaded() -> None:
    """The program's module is loaded in a moment, what it runs in a second."""
    program = """
import runpy, sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == "couchestord.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
runpy.run_module("couchestord", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


def test_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ExceptionGroup("nursery", [Error("known"), KeyError("defect")]))
    with pytest.raises(ExceptionGroup):
        entry.run([])


def test_unknown_key_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[store]\nengin = 'zfec'\n")
    assert entry.run(["status", "--config", str(path)]) == 1
    assert "store.engin is unknown; did you mean store.engine" in capsys.readouterr().err
