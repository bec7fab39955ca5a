"""Who may do what: other users of the host, tried by real processes of theirs where the tests run as root."""

import errno
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import numaemu as nm
from numaemu import places

Boot = Callable[..., nm.Machine]

NOBODY, STRANGER = 65534, 65533
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Machines of these tests lie where other users could get to, were they let."""
    folder = Path(f"/tmp/nw-{os.getpid()}-{secrets.token_hex(3)}")  # noqa: S108 - pytest's own folders are closed to others
    folder.mkdir(mode=0o711)
    folder.chmod(0o711)
    monkeypatch.setenv("NUMAEMU_RUNTIME", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def act(uid: int, *steps: list[Any], environ: dict[str, str] | None = None) -> list[Any]:
    """What a process of that user gets for each step."""
    command = [sys.executable, str(Path(__file__).with_name("other_user.py")), str(uid), str(uid), json.dumps(steps)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=90, check=False, env={**os.environ, **(environ or {})}
    )
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout)
    return answers


def visitors(machine: nm.Machine) -> Path:
    """The directory that other users are given."""
    return places.visitors_dir(places.machine_dir(machine.name))


@as_root
def test_another_user_reaches_nothing_of_a_machine_that_admits_none(boot: Boot) -> None:
    """Neither the directory, nor a socket in it, nor the memory of a process; and the machine cannot be ended."""
    machine = boot()
    place = places.machine_dir(machine.name)
    pids = [process["pid"] for process in machine.status()["processes"]]
    assert not visitors(machine).exists()
    token = machine._attachment.peer.token  # noqa: SLF001 - stolen, somehow
    endpoint = machine._attachment.peer.endpoint  # noqa: SLF001 - as above
    boot_id, init_pid = machine.status()["boot_id"], pids[0]
    steps: list[list[Any]] = [["listed", str(place)], ["ended", str(place)], ["worked", machine.name]]
    steps += [["knocked", str(place / name)] for name in ("fd.sock", "kernel.ipc", "bus.ipc", "init.sock")]
    steps += [["listed", f"/proc/{pid}/fd"] for pid in [*pids, os.getpid()]]
    steps += [["opened", f"/proc/{pid}/fd/{fd}"] for pid in pids for fd in range(5, 25)]
    steps += [["opened", f"/proc/{pid}/mem"] for pid in pids]
    answers = act(NOBODY, *steps, ["called", endpoint, boot_id, token.hex(), init_pid])
    assert answers == ["EACCES"] * len(steps) + ["silence"]


@as_root
def test_a_user_who_is_named_works_remotely(boot: Boot, runtime: Path) -> None:
    """It connects by the same name, by a path, and gets a token and no descriptor; tasks work, and are its own."""
    machine = boot(allow_uids=[NOBODY])
    place = visitors(machine)
    assert (place.stat().st_mode & 0o777, sorted(path.name for path in place.iterdir())) == (
        0o711,
        ["fd.sock", "kernel.ipc", "lock"],
    )
    whole = [True, "hello", "Jello", [0]]
    by_name, by_path, hello, *refused = act(
        NOBODY,
        ["worked", machine.name],
        ["worked", str(place)],
        ["said_hello", str(place / "fd.sock")],
        ["listed", str(place)],
        ["put", str(place / "lock")],
        ["opened", str(place / "lock")],
        ["knocked", str(places.machine_dir(machine.name) / "kernel.ipc")],
        *[["listed", f"/proc/{process['pid']}/fd"] for process in machine.status()["processes"]],
        environ={"NUMAEMU_RUNTIME": str(runtime)},
    )
    assert by_name == by_path == whole
    assert (hello[1], "token" in hello[0]) == (0, True)
    assert set(refused) == {"EACCES"}


@as_root
def test_a_user_who_is_not_named_is_not_served(boot: Boot) -> None:
    """The sockets for other users can be reached by everybody; who is not named gets no byte from either."""
    machine = boot(allow_uids=[NOBODY])
    place = visitors(machine)
    peer = machine._attachment.peer  # noqa: SLF001 - its token, stolen
    token, init_pid = peer.token.hex(), machine.status()["processes"][0]["pid"]
    answers = act(
        STRANGER,
        ["said_hello", str(place / "fd.sock")],
        ["worked", str(place)],
        ["called", f"ipc://{place}/kernel.ipc", peer.boot_id, token, init_pid],
    )
    assert answers == ["hung up", "PeerHungUpError", "silence"]


@as_root
def test_a_token_is_good_for_nobody_else(boot: Boot) -> None:
    """A user who is admitted and has found the owner's token, or that of a third, gets EACCES for it."""
    machine = boot(allow_uids=[NOBODY, STRANGER])
    place = visitors(machine)
    peer = machine._attachment.peer  # noqa: SLF001 - its token, stolen
    init_pid = machine.status()["processes"][0]["pid"]
    called = ["called", f"ipc://{place}/kernel.ipc", peer.boot_id, peer.token.hex(), init_pid]
    assert act(NOBODY, called, ["worked", str(place)])[:1] == ["refused EACCES"]
    own = nm.connect(str(places.machine_dir(machine.name)), remote=True)
    try:
        here = own._attachment.peer  # noqa: SLF001 - as above
        called[3] = here.token.hex()
        assert act(STRANGER, called) == ["refused EACCES"]
    finally:
        own.close()


@as_root
def test_capabilities_of_other_users_are_those_that_were_granted(boot: Boot) -> None:
    """To all, or to one; whatever else they name is refused."""
    machine = boot(allow_uids=[NOBODY, STRANGER], grants=["CAP_SYS_NICE", f"{NOBODY}:CAP_IPC_LOCK"])
    place = str(visitors(machine))
    steps = [["attached", place, names] for names in (["CAP_SYS_NICE"], ["CAP_IPC_LOCK"], ["CAP_SYS_ADMIN"])]
    assert act(NOBODY, *steps) == [["CAP_SYS_NICE"], ["CAP_IPC_LOCK"], "EPERM"]
    assert act(STRANGER, *steps) == [["CAP_SYS_NICE"], "EPERM", "EPERM"]


@as_root
@pytest.mark.parametrize("profile", ["swap-v3", "linux-6.12"])
def test_another_user_and_the_tasks_of_the_owner(profile: str, boot: Boot) -> None:
    """Its uid is that of the host in the emulated kernel: it may not look into, move, take over or share a task."""
    machine = boot(profile=profile, allow_uids=[NOBODY])
    with machine.attach() as task:
        buf = task.mmap(4096)
        buf[0:6] = b"secret"
        machine.create_file("ours", b"bytes of the owner")
        pid, place = task.pid, str(visitors(machine))
        one: list[list[Any]] = [["asked", place, "migrate_pages", "own", pid, 65, [1], [2]]]
        several: list[list[Any]] = [["asked", place, "move_pages", "own", pid, 1, [buf.start], [1], 2]]
        refused: list[list[Any]] = [
            ["asked", place, "adopt", pid],
            ["asked", place, "attach", 0, [], pid],
            ["asked", place, "read", pid, buf.start, 6],
            ["asked", place, "fsck"],
            ["asked", place, "sysctl", "/sys/kernel/mm/mempolicy/weighted_interleave/node0", "3"],
            ["asked", place, "setuid", "own", 0],
            ["asked", place, "setuid", "own", STRANGER],
            ["asked", place, "window", "own"],
        ]
        closed: list[list[Any]] = [["asked", place, name, pid] for name in ("maps", "numa_maps")]
        closed += [["asked", place, "file_read", "own", "ours", 0, 5]]
        closed += [["asked", place, "mmap", "own", 0, 4096, 1, 1, "ours", 0, "r"]]
        answers = act(NOBODY, *one, *several, *refused, *closed, ["asked", place, "numa_maps", "own"])
        today = profile == "linux-6.12"
        assert answers[0] == ("EPERM" if today else "0")  # V3 lets anybody migrate any task
        assert answers[1].startswith(f"[{-errno.EPERM}," if today else "ENOSYS")
        assert answers[2:-1] == ["EPERM"] * len(refused) + ["EACCES"] * len(closed)
        assert answers[-1] == "''"
        assert buf[0:6] == b"secret"


@as_root
def test_other_users_come_back_to_a_daemon_that_is_new(
    boot: Boot, pid_of: Callable[..., int], start_client: Callable[..., Any]
) -> None:
    """A client of another user keeps its tasks and its bytes over the death of the daemon, and is still remote."""
    machine = boot(allow_uids=[NOBODY])
    client = start_client("visitor.py", NOBODY, visitors(machine))
    assert client.hear() == "written"
    for _ in range(2):
        os.kill(pid_of(machine, "kernel"), signal.SIGKILL)
        client.go_on()
        assert client.hear() == "right"


@as_root
def test_nothing_is_left_of_another_user_who_is_killed(
    boot: Boot, start_client: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    """The kernel tells of its death as of anybody's: its tasks end."""
    machine = boot(allow_uids=[NOBODY])
    client = start_client("visitor.py", NOBODY, visitors(machine))
    assert client.hear() == "written"
    assert machine.status()["tasks"] == 1
    client.kill()
    eventually(lambda: machine.status()["tasks"] == 0, "its task is still there")


def test_a_directory_that_nobody_can_pass_is_told(runtime: Path) -> None:
    """A machine for other users in a private directory does not start, and says which directory is in the way."""
    runtime.chmod(0o700)
    with pytest.raises(nm.PeerError, match=f"{runtime}: other users cannot pass through it"):
        nm.boot(allow_uids=[NOBODY if os.getuid() != NOBODY else STRANGER])
    assert list(runtime.iterdir()) == []


def test_the_owner_may_be_remote_as_well(boot: Boot) -> None:
    """A whole client without the memory: it gets no descriptor, everything works, and the library's fork is remote."""
    machine = boot()
    with nm.connect(machine.name, remote=True) as far, far.attach(capabilities=["CAP_SYS_NICE"]) as task:
        assert (far._attachment.views, far._attachment.fds, task.remote) == (None, {}, True)  # noqa: SLF001 - that is the point
        buf = task.mmap(1 << 20)
        buf.write(0, b"x" * (1 << 20))
        assert far.numa_maps(task.pid).count(" Anon=256 ") == 1
        assert (far.fsck(), far.status()["machine"]) == ([], machine.name)
        with task.fork() as child:
            assert (child.remote, child.read(buf.start, 2)) == (True, b"xx")
        with pytest.raises(PermissionError, match="no access slots"):
            far._calls.call("window", task.pid)  # noqa: SLF001 - by hand
