"""A process that builds programs in a folder, anew each time, until its input ends; it says the number of each build.

Ends badly with the first that goes wrong.
"""

import compileall
import select
import shutil
import subprocess
import sys
from pathlib import Path

UNITS_COUNT = 4
_MAKEFILE = """
OBJECTS := $(patsubst %.c,%.o,$(wildcard unit-*.c))
said: program
\t./program > said
program: main.o units.a
\tgcc -o $@ $^
units.a: $(OBJECTS)
\tar rcs $@ $^
%.o: %.c units.h
\tgcc -O1 -c -o $@ $<
"""
_UNIT = """
#include "units.h"
int unit_{number}(int value) {{ int sum = {number}; while (value) sum += value--; return sum; }}
"""
EXPECTED = f"{sum(number + 55 for number in range(UNITS_COUNT))}\n"


def build(folder: Path, archive: Path) -> None:
    """A tree of Python out of an archive, compiled, and a program made of C, which runs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    subprocess.run(["tar", "-C", folder, "-xf", archive], check=True)
    assert compileall.compile_dir(folder / "catalog", quiet=1)
    numbers = range(UNITS_COUNT)
    (folder / "units.h").write_text("".join(f"int unit_{number}(int);\n" for number in numbers))
    for number in numbers:
        (folder / f"unit-{number}.c").write_text(_UNIT.format(number=number))
    terms = " + ".join(f"unit_{number}(10)" for number in numbers)
    main_c = f'#include <stdio.h>\n#include "units.h"\nint main() {{ printf("%d\\n", {terms}); return 0; }}\n'
    (folder / "main.c").write_text(main_c)
    (folder / "Makefile").write_text(_MAKEFILE)
    subprocess.run(["make", "-s", "-j2", "-C", folder], check=True)
    subprocess.run(["make", "-q", "-C", folder], check=True)  # nothing is left to be made
    assert (folder / "said").read_text() == EXPECTED


def main(folder: Path, archive: Path) -> None:
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        build(folder, archive)
        number += 1
        print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
