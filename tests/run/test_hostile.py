"""Programs that trouble their supervisor: each gets its answers, and leaves a machine that is sound."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.run.conftest import PROGRAMS, SECONDS, Run, compiled, own_descriptors

import numaemu as nm
from numaemu_run import descriptors
from numaemu_run.session import Session

pytestmark = pytest.mark.shares_machines


@pytest.mark.parametrize(
    "name",
    [
        "interrupted",
        "storm",
        "killed",
        "pointers",
        "descriptors",
        "crowd",
        "executed_by_a_thread",
        pytest.param("undumpable", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into it")),
    ],
)
def test_nothing_a_program_does_stops_its_supervisor(
    machine: nm.Machine, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """It gets its answers, however it calls, ends or closes; no trouble comes of it, and no descriptor is left over."""
    with Session(None, machine.name) as session:
        before = own_descriptors()
        code = session.run([sys.executable, str(PROGRAMS / "hostile.py"), name], os.environ).code
        after = own_descriptors()
    out, err = capfd.readouterr()
    assert (out, err, code) == ("well\n", "", 0), err
    assert not after - before


#: A `numaemu run` that may have 64 descriptors, with so many spare ones.
FEW_DESCRIPTORS = """
import resource, sys
from numaemu.cli.main import main
from numaemu_run import descriptors
from numaemu_run.session import Session

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
descriptors.SPARE = int(sys.argv.pop(1))
sys.exit(main())
"""


#: The command, which tells what is imported while programs are served.
TELLS_IMPORTS = """
import sys
from numaemu.cli.main import main
from numaemu_run import session

class Told:
    @staticmethod
    def find_spec(name, path, target=None):
        print("imported:", name, file=sys.stderr)

def serve(*arguments, served=session._serve):
    sys.meta_path.insert(0, Told)
    try:
        return served(*arguments)
    finally:
        sys.meta_path.remove(Told)

session._serve = serve
sys.exit(main())
"""


@pytest.mark.parametrize("program", [("outnumbered.py", "4", "4"), ("touchers.py", "policy")], ids=["many", "threads"])
def test_nothing_is_imported_while_programs_are_served(machine: nm.Machine, program: tuple[str, ...]) -> None:
    """An import opens files, and there may be no descriptor left for them."""
    command = [sys.executable, "-c", TELLS_IMPORTS, "run", "-m", machine.name, "--"]
    words = [sys.executable, str(PROGRAMS / program[0]), *program[1:]]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("option", [(), ("--no-mount",)], ids=["mounted", "answered"])
@pytest.mark.parametrize(("spare", "refused"), [(descriptors.SPARE, "-"), (0, "f-")], ids=["spare", "none"])
def test_a_supervisor_without_descriptors_serves_whom_it_knows(
    machine: nm.Machine, spare: int, refused: str, option: tuple[str, ...]
) -> None:
    """Who comes when none is left is told so, and asks in vain until others have ended; nobody hangs or is misled."""
    command = [sys.executable, "-c", FEW_DESCRIPTORS, str(spare), "run", "-m", machine.name, *option, "--"]
    program = [sys.executable, str(PROGRAMS / "outnumbered.py"), "16", "16"]
    done = subprocess.run([*command, *program], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    first, together, last, status = done.stdout.split()
    assert (first, last, status) == (".", ".", "0"), done
    assert set(together) <= {".", *refused}, done
    assert 0 < together.count("-") < len(together), done
    assert "[Errno 24]" in done.stderr


@pytest.mark.skipif(not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK), reason="numbers cannot be asked for")
def test_a_number_that_is_used_again_is_nobody_elses(run: Run, tmp_path: Path) -> None:
    """Also if its process has ended while the supervisor was busy: the new one has a CPU of its own."""
    done = run(compiled("renumbered.c", tmp_path))
    assert (done.stdout, done.stderr) == ("00000000\n", "")
