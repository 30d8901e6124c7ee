import os
import subprocess
import sys

import pytest

from couchestord.cli import output

PROGRAM = "from couchestord.cli import output\noutput.{call}('much to say' * 100)\nprint('and it goes on')\n"
FULL = "/dev/full"


def run(call: str, where: str) -> tuple[int, str]:
    """What it ends with and tells on standard error. `where` empty: a pipe whose reader has gone."""
    if where:
        out = os.open(where, os.O_WRONLY)
    else:
        read, out = os.pipe()
        os.close(read)
    line = [sys.executable, "-c", PROGRAM.format(call=call)]
    try:
        done = subprocess.run(line, stdout=out, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(out)
    return done.returncode, done.stderr.decode()


def test_what_is_said_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    output.say("a\nb")
    assert capsys.readouterr().out == "a\nb\n"


@pytest.mark.parametrize(("where", "why"), [("", "BrokenPipeError"), (FULL, "No space left on device")])
def test_result_that_cannot_be_written_is_an_error_said_once(where: str, why: str) -> None:
    code, told = run("say", where)
    assert code == 1
    assert why in told
    assert "Exception ignored" not in told, "the interpreter tried again"


@pytest.mark.parametrize("where", ["", FULL])
def test_daemon_goes_on_though_nobody_hears_where_it_is(where: str) -> None:
    code, told = run("announce", where)
    assert code == 0
    assert "nobody could be told where this daemon is" in told
    assert "Traceback" not in told


def test_who_has_no_output_is_told_nothing() -> None:
    program = PROGRAM.format(call="say")
    done = subprocess.run(f'{sys.executable} -c "{program}" >&-', shell=True, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
