"""Running a foreign program by naming its emulator: for kernels that allow no handler at all.

The emulator is shown inside the step and put before the command. It cannot start a script, so ``#!`` lines are
followed here; and a foreign program that starts another one still fails, which is why this is the last way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossdock.emulation.elf import read_executable
from crossdock.engine.sandbox.execfail import step_inside

if TYPE_CHECKING:
    from crossdock.engine.sandbox.step import StepSpec

__all__ = ["EMULATOR_PATH", "prefixed_args"]

#: on the step's own /dev, so that no trace of it is left in a layer
EMULATOR_PATH = "/dev/.crossdock-emulator"
_MAX_SCRIPTS = 4


def prefixed_args(step: StepSpec) -> tuple[str, ...]:
    """Return the command with the emulator before it; unchanged when the program is not found."""
    argv0, rest = step.args[0], step.args[1:]
    found = step_inside(step, argv0)
    for _ in range(_MAX_SCRIPTS):
        if found is None:
            return step.args
        inside, outside = found
        program = read_executable(outside)
        if program.kind != "script":
            return (EMULATOR_PATH, "-0", argv0, inside, *rest)
        with open(outside, "rb") as file:
            line = file.readline(256)[2:].decode(errors="surrogateescape").strip()
        interpreter, _, argument = line.partition(" ")
        argv0, rest = interpreter, (*((argument.strip(),) if argument.strip() else ()), inside, *rest)
        found = step_inside(step, interpreter)
    return step.args
