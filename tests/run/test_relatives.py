"""Threads and processes that come, change and go in unusual ways, and what goes wrong with single ones."""

import errno
import inspect
import json
import os
import select
import signal
import sys
from pathlib import Path

import pytest
from tests.run.conftest import PROGRAMS, SECONDS, Run, compiled, numaemu

from numaemu_run import trouble
from numaemu_run.family import Family
from numaemu_run.processes import Thread
from numaemu_run.procfs import Status
from numaemu_run.session import Session
from numaemu_run.telling import notice

pytestmark = pytest.mark.shares_machines
PROGRAM = PROGRAMS / "relatives.py"


@pytest.mark.parametrize(
    "name",
    [
        "errors",
        "executed_again",
        "executed_by_a_thread",
        "executed_by_a_thread_without_a_word",
        "forked_by_a_thread",
        "headless",
        "huge",
        "odd_name",
        "only_read",
        "shared_with_a_child",
        "short_lived",
    ],
)
def test_each_is_answered_as_its_story_says(run: Run, name: str) -> None:
    """Nothing is refused, guessed or left behind that the kernel would not; nobody reports trouble."""
    done = run(sys.executable, PROGRAM, name, options=("--report", "json"))
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
    assert json.loads(done.stderr)["troubles"] == {}


def test_pages_in_common_with_a_parent_that_nobody_has_met_count_once(run: Run) -> None:
    """The parent is looked at before its first child becomes a fork of it."""
    done = run(sys.executable, PROGRAM, "in_common", options=("--report", "json"))
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
    assert 4000 <= sum(json.loads(done.stderr)["pages_by_node"].values()) < 3 * 4000


def test_children_may_have_the_memory_of_their_parent(run: Run, tmp_path: Path) -> None:
    """What such a child binds is bound for the parent; a program that one executes has memory of its own."""
    done = run(compiled("vforked.c", tmp_path), options=("--report", "json"))
    assert (done.stdout, done.returncode) == ("0 2 0 2 0\n", 0)
    assert json.loads(done.stderr)["troubles"] == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_rights_that_are_given_up_are_gone(run: Run) -> None:
    """MOVE_ALL and the pages of others are refused as soon as the program is not root any more."""
    done = run(sys.executable, PROGRAM, "another_user")
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_rights_that_are_kept_count(run: Run) -> None:
    """MOVE_ALL is for CAP_SYS_NICE, whoever has it; that of a user namespace of one's own is not what is meant."""
    done = run(sys.executable, PROGRAM, "capable_user")
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize("options", [(), ("--no-mount",)], ids=["mounted", "answered"])
def test_who_becomes_another_user_is_served_on(run: Run, options: tuple[str, ...]) -> None:
    """Its policy stays, its calls are answered, and the tree of nodes is there for him and for what he executes."""
    done = run(sys.executable, PROGRAM, "set_uid", options=(*options, "--report", "json"))
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
    assert json.loads(done.stderr)["troubles"] == {}


def test_children_that_have_ended_are_not_met_again(run: Run) -> None:
    """Each is met once at the most, however many calls come before its parent asks how it has ended."""
    done = run(sys.executable, PROGRAM, "zombies", options=("--report", "json"))
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
    assert json.loads(done.stderr)["processes"] <= 21


def test_a_machine_that_has_no_room_for_some_processes_serves_the_others(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who cannot be met makes no call of its relatives fail, and is told on stderr once."""
    meet = Family._meet_process  # noqa: SLF001 - the machine's own limit is 4096

    def meets_one(family: Family, status: Status, guess: Thread | None = None) -> Thread:
        if list(family):
            raise OSError(errno.EAGAIN, "too many address spaces")
        return meet(family, status, guess)

    monkeypatch.setattr(Family, "_meet_process", meets_one)
    assert session.run([sys.executable, str(PROGRAM), "crowd"], os.environ).code == 0
    out, err = capfd.readouterr()
    assert out == "well\n"
    assert err.count("too many address spaces") == err.count("\n") == 1


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("way", ["meminfo", "migrate"])
def test_who_has_no_memory_is_killed_and_not_who_looks(way: str) -> None:
    """A reader of /proc/meminfo gets its text, a caller of migrate_pages ESRCH; the process itself SIGKILL."""
    box = ("--nodes", "2", "--memory", "24M", "--swap", "1M")
    done = numaemu("run", *box, "--", sys.executable, PROGRAM, "overfull", way, 10_000)
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
    assert done.stderr.count("out of memory: killed process") == 1


def test_an_error_of_ours_concerns_one_call_only(
    session: Session, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Policy calls fail with EIO, the others are the host's: files open, memory moves, the program ends by itself."""

    def broken(*_args: object) -> None:
        raise ValueError("so it is")

    monkeypatch.setattr(Family, "look", broken)
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(PROGRAMS)!r})\n"
        "from calls import *\n"
        "memory = Memory(4)\n"
        "print(set_mempolicy(BIND, 1), mbind(memory.start, memory.length, 1), open('/proc/self/numa_maps').read(8))\n"
        "mmap.mmap(-1, 4096).resize(1 << 24)\n"
    )
    assert session.run([sys.executable, str(script)], os.environ).code == 0
    assert session.supervisor is not None
    (kind,) = session.supervisor.family.troubles.counts
    assert kind.startswith("ValueError in test_relatives.py:")
    out, err = capfd.readouterr()
    assert out.startswith("-5 -5 ")
    assert err.count("so it is") == 1


@pytest.mark.parametrize("call", ["set_mempolicy(BIND, 1)", "open('/proc/self/numa_maps').read()", "os.fork()"])
def test_who_is_killed_while_it_is_served_is_no_trouble(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    """It is forgotten in the middle of its call, as when its number is another one's by then, and gets no answer."""
    look = Family.look

    def look_and_kill(family: Family, thread: Thread, address: int | None = None) -> None:
        look(family, thread, address)
        if not done.exists():
            return
        os.kill(thread.process.pid, signal.SIGKILL)
        assert select.select([thread.process.pidfd], [], [], SECONDS)[0]
        family.has_news(thread.process.pidfd)

    done = tmp_path / "done"
    monkeypatch.setattr(Family, "look", look_and_kill)
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(PROGRAMS)!r})\n"
        "from calls import *\n"
        "set_mempolicy(BIND, 1)\n"
        f"open({str(done)!r}, 'w').close()\n"
        f"{call}\n"
        "set_mempolicy(BIND, 1)\n"
    )
    assert session.run([sys.executable, str(script)], os.environ).code == -signal.SIGKILL
    assert session.supervisor is not None
    assert session.supervisor.family.troubles.counts == {}


def test_a_line_of_ancestors_may_be_long(session: Session, capfd: pytest.CaptureFixture[str]) -> None:
    """However many there are, meeting them takes no deeper stack."""
    before, deep = sys.getrecursionlimit(), len(inspect.stack())
    sys.setrecursionlimit(deep + 120)
    try:
        assert session.run([sys.executable, str(PROGRAM), "deep", "50"], os.environ).code == 0
    finally:
        sys.setrecursionlimit(before)
    out, err = capfd.readouterr()
    assert (out, err) == ("well\n", "")


@pytest.mark.parametrize("options", [(), ("--report", "json", "--report-file", os.devnull)], ids=["", "report"])
def test_processes_without_end_hold_nobody_up(run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    """A chain of which each begins the next one: who is born while relatives are met is met another time."""
    done = run(compiled("chain.c", tmp_path), options=options)
    assert (done.stdout, done.returncode) == ("", 0), done


def test_only_ends_that_matter_are_looked_at(run: Run) -> None:
    """With a report: the program itself, who has called, and who may have the policy of an ancestor that has."""
    script = "/bin/true; /bin/true; numactl --membind=2 sh -c '/bin/true; exit 0'; /bin/true; exit 0"
    done = run("sh", "-c", script, options=("--report", "json"))
    report = json.loads(done.stderr)
    assert [(one["name"], list(one["pages_by_node"])) for one in report["exited"]] == [
        ("true", ["2"]),
        ("sh", ["2"]),
        ("sh", ["0"]),
    ]
    assert report["ended_unmet"] == 3


def test_a_notice_that_nobody_reads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without stderr, or with a pipe that nobody reads, the supervisor goes on."""
    monkeypatch.setattr(sys, "stderr", None)
    notice("a word")
    monkeypatch.undo()
    before = os.dup(2)
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 2)
    try:
        notice("a word")
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(writer)


def test_trouble_is_told_once_and_counted(capfd: pytest.CaptureFixture[str]) -> None:
    """What happens to any process is no trouble; the rest is told with its place the first time."""
    troubles = trouble.Troubles()
    for error in (ProcessLookupError(), PermissionError(), OSError(24, "so it is"), OSError(24, "again")):
        with troubles.confined():
            raise error
    assert list(troubles.counts.values()) == [2]
    assert capfd.readouterr().err.count("\n") == 1
