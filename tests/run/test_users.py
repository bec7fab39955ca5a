"""Runs of a user without rights, tried where the tests run as root."""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from tests.run.conftest import PROGRAMS, SECONDS, Done

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv: apt-get install util-linux"),
]
UID = 12345
#: He may read what Python lies in, wherever that is.
RIGHT = "-all,+dac_read_search"
AS_USER = [
    *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"),
    *(f"--inh-caps={RIGHT}", f"--ambient-caps={RIGHT}", sys.executable),
]
COMMAND = ("-m", "numaemu")
RunAsUser: TypeAlias = Callable[..., Done]


@pytest.fixture
def run() -> Iterator[RunAsUser]:
    """Runs a program on a machine of its own, by a user; `begin` is how the command is begun."""
    folder = Path(f"/tmp/nu-{os.getpid()}-{secrets.token_hex(3)}")  # noqa: S108 - pytest's own folders are closed to others
    folder.mkdir(mode=0o700)
    os.chown(folder, UID, UID)

    def start(*command: object, options: tuple[str, ...] = (), begin: tuple[str, ...] = COMMAND) -> Done:
        words = [*AS_USER, *begin, "run", "--nodes", "4", "--memory", "8M", "--swap", "0", *options, "--", *command]
        environment = {**os.environ, "NUMAEMU_RUNTIME": str(folder), "HOME": str(folder)}
        return subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env=environment,
            cwd="/",
        )

    yield start
    assert list(folder.iterdir()) == []
    shutil.rmtree(folder)


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no /usr/bin/python3: apt-get install python3")
def test_a_process_that_nobody_may_look_into_has_the_hosts_files(run: RunAsUser) -> None:
    """Its calls about paths, which we cannot read, are the host's to serve: it is refused none of them."""
    script = (
        "import ctypes, os; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); "
        "os.stat('/etc'); os.access('/etc', os.R_OK); os.readlink('/proc/self/exe'); os.fstat(0); "
        "os.close(os.open('/etc/passwd', os.O_RDONLY)); print('well')"
    )
    done = run("/usr/bin/python3", "-c", script, options=("--no-mount",))
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no /usr/bin/python3: apt-get install python3")
@pytest.mark.parametrize(
    ("options", "found"), [((), "0 True\n"), (("--no-mount",), "-1 False\n")], ids=["mounted", "answered"]
)
def test_a_process_that_nobody_may_look_into_is_served_in_a_namespace_of_its_users(
    run: RunAsUser, options: tuple[str, ...], found: str
) -> None:
    """A user may look into all that is in his own user namespace; elsewhere calls are EPERM, files the host's."""
    script = (
        f"{(PROGRAMS / 'calls.py').read_text()}\n"
        "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
        "print(set_mempolicy(BIND, 1), 'Mems_allowed_list:\\t0-3\\n' in open('/proc/self/status').read())\n"
    )
    done = run("/usr/bin/python3", "-c", script, options=options)
    assert (done.stdout, done.returncode) == (found, 0), done.stderr


@pytest.mark.parametrize(
    ("begin", "options"),
    [(COMMAND, ()), (COMMAND, ("--no-mount",)), ((str(PROGRAMS / "mapless.py"),), ())],
    ids=["mounted", "answered", "mapless"],
)
def test_a_user_stays_himself(run: RunAsUser, begin: tuple[str, ...], options: tuple[str, ...]) -> None:
    """With a mount namespace, without, and where the host lets him begin to make one: he is who he was."""
    script = "id -u; id -g; cat /sys/devices/system/node/online"
    done = run("sh", "-c", script, begin=begin, options=options)
    assert (done.stdout, done.stderr, done.returncode) == (f"{UID}\n{UID}\n0-3\n", "", 0)
