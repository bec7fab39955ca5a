"""`numaemu run` as a command: exit codes, signals, input, reports, refusals; and `numaemu doctor`."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest
from tests.run.conftest import PROGRAMS, SECONDS, Run, begun, numaemu, own_descriptors

import numaemu as nm
from numaemu_run.session import Session
from numaemu_run.supervisor import Supervisor

pytestmark = pytest.mark.shares_machines


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_programs(run: Run, code: int) -> None:
    """Whatever it is."""
    assert run("sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("name", ["SIGTERM", "SIGSEGV", "SIGKILL", "SIGINT"])
def test_a_program_that_a_signal_ends_ends_the_command_so(run: Run, name: str) -> None:
    """Whoever waits for the command sees the signal."""
    assert run("sh", "-c", f"kill -{name[3:]} $$").returncode == -signal.Signals[name]


def test_input_and_output_are_the_programs(run: Run) -> None:
    """Standard input reaches it to its end; output and errors are its own, byte by byte."""
    done = run("sh", "-c", "cat; echo bad >&2", stdin="one\ntwo")
    assert (done.stdout, done.stderr, done.returncode) == ("one\ntwo", "bad\n", 0)


@pytest.mark.parametrize(
    ("command", "code", "complaint"),
    [
        (["/nonexistent/program"], 127, "/nonexistent/program: No such file or directory"),
        (["no-such-program-anywhere"], 127, "no-such-program-anywhere: No such file or directory"),
        (["/etc/passwd"], 126, "/etc/passwd: Permission denied"),
    ],
)
def test_what_cannot_be_executed_is_told_as_a_shell_tells_it(
    run: Run, command: list[str], code: int, complaint: str
) -> None:
    """127 where there is no such program, 126 where it cannot be executed, and a line that says why."""
    done = run(*command)
    assert (done.returncode, done.stderr) == (code, f"numaemu run: {complaint}\n")


def test_of_what_cannot_be_executed_there_is_a_report(run: Run, tmp_path: Path) -> None:
    """One of CI is not to find an empty file."""
    path = tmp_path / "report.json"
    assert run("/nonexistent/program", options=("--report", "json", "--report-file", str(path))).returncode == 127
    assert json.loads(path.read_text())["exit_code"] == 127


def test_what_lies_in_the_current_directory_is_no_module_of_ours(tmp_path: Path) -> None:
    """The daemon executes nothing of it, whatever it is called."""
    for name in ("random", "secrets", "types", "numaemu_daemon", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('executed')")
    command = [sys.executable, "-P", "-m", "numaemu", "run", "--memory", "4M", "--", "echo", "ran"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("ran\n", "", 0)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "--nodes", "0", "--", "false"], "nodes: expected a whole number from 1"),
        (["run", "--topology", "/nonexistent", "--", "false"], "/nonexistent: No such file or directory"),
        (["-m", "nobody", "run", "--", "false"], "no machine named 'nobody' is running"),
    ],
)
def test_a_machine_that_is_not_there_is_told_from_a_failing_program(words: list[str], complaint: str) -> None:
    """125, as from env, and a line that says why; 1 would be the program's."""
    done = numaemu(*words)
    assert done.returncode == 125
    assert complaint in done.stderr


def test_a_script_that_names_no_interpreter_is_a_shells(run: Run, tmp_path: Path) -> None:
    """As env runs it: by sh, with its arguments, also where it is found by PATH."""
    script = tmp_path / "plain-script"
    script.write_text("echo $0 $1; exit 4\n")
    script.chmod(0o755)
    done = run(script, "one")
    assert (done.stdout, done.stderr, done.returncode) == (f"{script} one\n", "", 4)
    command = ("env", f"PATH={tmp_path}:{os.environ['PATH']}", sys.executable, "-m", "numaemu", "run", "--memory", "4M")
    found = subprocess.run([*command, "--", "plain-script", "two"], capture_output=True, text=True, check=False)
    assert (found.stdout, found.returncode) == (f"{script} two\n", 4), found.stderr


def test_a_report_that_cannot_be_written_is_told_before(run: Run) -> None:
    """The program does not run in vain: 125, and a line that says why."""
    done = run("echo", "ran", options=("--report", "json", "--report-file", "/nonexistent/report"))
    assert (done.stdout, done.returncode) == ("", 125)
    assert "/nonexistent/report: No such file or directory" in done.stderr


def test_a_junit_file_is_xml_whatever_the_command_is(run: Run, tmp_path: Path) -> None:
    """Control characters and bytes that are no text are escaped."""
    path = tmp_path / "report.xml"
    words = ("true", "a\x01b", b"\xff".decode(errors="surrogateescape"), "tab\there")
    done = run(*words, options=("--report", "junit", "--report-file", str(path)))
    assert done.returncode == 0, done.stderr
    case = ET.parse(path).getroot().find("testcase")  # noqa: S314 - it is ours
    assert case is not None
    assert case.get("name") == r"true 'a\x01b' '\xff' 'tab" + "\there'"


def test_a_run_inside_a_run_is_refused(run: Run) -> None:
    """A program has one supervisor: the second one says so, and what it was to run does not begin."""
    done = run(sys.executable, "-m", "numaemu", "run", "--memory", "4M", "--", "echo", "began")
    assert (done.returncode, done.stdout) == (125, "")
    assert "cannot run inside of itself" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("run", "--"),
        ("run", "-m", "x", "--nodes", "2", "--", "true"),
        ("run", "-m", "x", "--fault", "swap: full", "--", "true"),
        ("run", "-m", "x", "--seed", "7", "--", "true"),
        ("run", "--topology", "f", "--nodes", "2", "--", "true"),
        ("run", "--preset", "two-socket", "--nodes", "2", "--", "true"),
        ("run", "-m", "x", "--preset", "two-socket", "--", "true"),
        ("run", "--report-file", "f", "--", "true"),
    ],
)
def test_wrong_command_lines_are_refused(runtime: Path, words: tuple[str, ...]) -> None:
    """Exit status 2, before a machine is started."""
    there = set(runtime.iterdir())
    done = numaemu(*words)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert set(runtime.iterdir()) == there


def test_a_private_machine_is_gone_with_the_run(runtime: Path, tmp_path: Path) -> None:
    """A topology of sparse nodes is what the program sees; afterwards there is neither machine nor tree of nodes."""
    topology = tmp_path / "box.toml"
    topology.write_text(
        'profile = "linux-6.1"\n[[node]]\nid = 1\nmemory = "8M"\ncpus = [0, 3]\n[[node]]\nid = 5\nmemory = "4M"\n'
    )
    machines = set(runtime.iterdir())
    script = "cat /sys/devices/system/node/online /sys/devices/system/node/node1/cpulist; nproc; echo $NUMAEMU_MACHINE"
    done = numaemu("run", "--topology", topology, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    online, cpus, count, name = done.stdout.splitlines()
    assert (online, cpus, count) == ("1,5", "0,3", "2")
    assert set(runtime.iterdir()) == machines
    assert not (runtime / name).exists()


def test_a_container_is_no_part_of_the_program(runtime: Path) -> None:
    """Where everybody is under a filter, the machine too, only the program is looked at, and only it ends."""
    machines = set(runtime.iterdir())
    contained = (sys.executable, PROGRAMS / "contained.py", "", sys.executable, "-m", "numaemu")
    options = ("run", "--memory", "8M", "--swap", "0", "--report", "json", "--")
    done = subprocess.run(
        [*contained, *options, "sh", "-c", "(sleep 60 & numactl --membind=1 cat /proc/self/numa_maps)"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "bind:1" in done.stdout
    report = json.loads(done.stderr)
    assert report["pages_by_node"]["1"] > 0
    assert report["processes"] <= 4, report
    assert set(runtime.iterdir()) == machines


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_the_exit_code_needs_no_standard_streams(machine: nm.Machine, stream: int, code: int) -> None:
    """Where one is closed the exit code is still that of the program, whose stream is closed, too."""
    words = [sys.executable, "-m", "numaemu", "run", "-m", machine.name, "--", "sh", "-c"]
    closed = ["sh", "-c", f'exec "$@" {stream}>&-', "sh", *words, f"! test -e /proc/$$/fd/{stream} && exit {code}"]
    assert subprocess.run(closed, timeout=SECONDS, check=False).returncode == code


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_needs_nobody_who_reads_stderr(machine: nm.Machine, code: int) -> None:
    """Where it is a pipe without a reader the exit code is still that of the program."""
    words = [sys.executable, "-m", "numaemu", "run", "-m", machine.name]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [*words, "--report", "json", "--", "sh", "-c", f"exit {code}"]
        assert subprocess.run(command, stderr=writer, timeout=SECONDS, check=False).returncode == code
    finally:
        os.close(writer)


def test_the_report_counts_calls_and_pages(run: Run, tmp_path: Path) -> None:
    """JSON with the calls by name, those that were refused, and the pages that each node gave."""
    script = "numactl --membind=2 cat /proc/self/numa_maps; exit 3"
    path = tmp_path / "report.json"
    done = run("sh", "-c", script, options=("--report", "json", "--report-file", str(path)))
    assert (done.returncode, done.stderr) == (3, "")
    report = json.loads(path.read_text())
    assert report["exit_code"] == 3
    assert report["signal"] is None
    assert report["calls"]["set_mempolicy"] >= 1
    assert report["pages_by_node"]["2"] > 0
    assert report["pages_by_node"]["1"] == report["pages_by_node"]["3"] == 0
    assert report["processes"] == 2
    assert report["files_given"] > 0


def test_the_report_tells_where_pages_were_at_the_end(run: Run) -> None:
    """Each process that exits by itself, with the pages that its last program had on each node; a killed one not."""
    done = run("sh", "-c", "numactl --membind=2 true; sh -c 'kill -9 $$'; exit 0", options=("--report", "json"))
    report = json.loads(done.stderr[done.stderr.index("{\n") :])
    bound, shell = report["exited"]
    assert (bound["name"], list(bound["pages_by_node"])) == ("true", ["2"])
    assert (shell["name"], shell["pid"], list(shell["pages_by_node"])) == ("sh", report["pid"], ["0"])
    assert report["processes"] == 2  # nobody has met the one that was killed


def test_the_report_tells_what_was_refused(run: Run) -> None:
    """Each refused call with its errno."""
    done = run(sys.executable, PROGRAMS / "refused.py", options=("--report", "json"))
    report = json.loads(done.stderr)
    assert report["refused"] == {"mbind EFAULT": 1, "set_mempolicy EINVAL": 2}


@pytest.mark.parametrize(("code", "failures"), [(0, "0"), (4, "1")])
def test_the_report_is_a_junit_file(run: Run, tmp_path: Path, code: int, failures: str) -> None:
    """One test, the command, which failed if its exit code says so; the numbers are properties."""
    path = tmp_path / "report.xml"
    run("sh", "-c", f"exit {code}", options=("--report", "junit", "--report-file", str(path)))
    suite = ET.parse(path).getroot()  # noqa: S314 - it is ours
    assert (suite.get("tests"), suite.get("failures")) == ("1", failures)
    assert (suite.find("testcase/failure") is not None) == (code != 0)
    names = {one.get("name") for one in suite.iterfind("properties/property")}
    assert {"pages_by_node.0", "calls.exit_group", "profile"} <= names


# -- signals to the command, and what it leaves ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT", "SIGQUIT"])
def test_signals_to_the_command_reach_the_program(machine: nm.Machine, name: str) -> None:
    """The program handles what was sent to the command, and ends as it likes."""
    script = f"trap 'echo got; exit 5' {name[3:]}; echo ready; while :; do sleep 0.1; done"
    with begun("run", "-m", machine.name, "--", "sh", "-c", script) as process:
        process.send_signal(signal.Signals[name])
        out, _ = process.communicate(timeout=SECONDS)
    assert (out, process.returncode) == ("got\n", 5)


def test_a_signal_before_the_program_leaves_nothing(runtime: Path, tmp_path: Path) -> None:
    """The command that is told to end before its program is there, or just then, ends, and takes away what it made."""
    machines = set(runtime.iterdir())
    command = [sys.executable, "-m", "numaemu", "run", "--memory", "4M", "--swap", "0", "--", "sleep", "60"]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}) as process:
        while not list(tmp_path.glob("numaemu-run-*")):  # and not the file with which tempfile tries where it may write
            assert process.poll() is None
        process.terminate()
        assert process.wait(SECONDS) in {-signal.SIGTERM, 128 + signal.SIGTERM}
    assert list(tmp_path.iterdir()) == []
    assert set(runtime.iterdir()) == machines


def test_a_signal_finds_no_folder_that_nobody_takes_away(
    machine: nm.Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes just when the folder of a run was made ends the run, and the folder with it."""
    make = tempfile.mkdtemp

    def told_to_end(prefix: str) -> str:
        made = make(prefix=prefix, dir=tmp_path)
        signal.raise_signal(signal.SIGTERM)  # to this thread: the command has no other one that takes it
        return made

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "mkdtemp", told_to_end)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(KeyboardInterrupt):
            Session(None, machine.name)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_run_that_was_killed_goes_with_the_next_one(
    machine: nm.Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of runs that go on stay."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    waiting = ("run", "-m", machine.name, "--", "sh", "-c", "echo ready; read x")
    with begun(*waiting) as living:
        kept = set(tmp_path.iterdir())
        with begun(*waiting) as killed:
            killed.kill()
        assert set(tmp_path.iterdir()) > kept
        assert numaemu("run", "-m", machine.name, "--", "true").returncode == 0
        assert set(tmp_path.iterdir()) == kept
        living.communicate("\n", timeout=SECONDS)
    assert list(tmp_path.iterdir()) == []


def test_what_a_program_leaves_behind_ends_with_it(machine: nm.Machine, tmp_path: Path) -> None:
    """A child in the background is asked to end, and made to if it will not."""
    script = (
        "mkfifo $0/begun; sh -c 'trap \"echo asked; exit\" TERM; echo > $0/begun; while :; do sleep 0.1; done' $0 & "
        "read x < $0/begun; trap '' TERM; (while :; do sleep 1; done) & echo ready; echo $!; read x"
    )
    with begun("run", "-m", machine.name, "--", "sh", "-c", script, tmp_path) as process:
        assert process.stdout is not None
        left = int(process.stdout.readline())
        out, _ = process.communicate("\n", timeout=SECONDS)
    assert (out, process.returncode) == ("asked\n", 0)
    with pytest.raises(ProcessLookupError):
        os.kill(left, 0)


@pytest.mark.timeout(30)
def test_what_is_left_is_killed_though_nothing_happens(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is over when it is over, and not when its memory is looked at next, or a call comes."""
    monkeypatch.setattr("numaemu_run.supervisor._LOOK_EVERY_S", 24 * 3600.0)
    monkeypatch.setattr("numaemu_run.session._GRACE_S", 0.1)
    assert session.run(["sh", "-c", "trap '' TERM; sleep 7200 & exit 4"], os.environ).code == 4


def test_a_supervisor_that_fails_takes_its_program_along(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong, no program runs on with nobody there to answer its calls; the error is told."""
    step = Supervisor.step

    def broken(supervisor: Supervisor, timeout_s: float | None = None) -> AbstractSet[int]:
        if list(supervisor.family):
            raise RuntimeError("broken")
        return step(supervisor, timeout_s)

    monkeypatch.setattr(Supervisor, "step", broken)
    before = own_descriptors()
    with pytest.raises(RuntimeError, match="broken"):
        session.run(["sh", "-c", "while :; do cat /proc/self/status; sleep 0.01; done"], os.environ)
    assert not own_descriptors() - before
    assert session.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(session.pid, 0)


def test_a_killed_supervisor_leaves_no_program_that_waits(
    machine: nm.Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of a program whose supervisor was killed fail with ENOSYS; none of them hangs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # nobody takes away what it has made
    told = tmp_path / "told"
    script = f"exec {sys.executable} {PROGRAMS / 'abandoned.py'} {told}"
    with begun("run", "-m", machine.name, "--", "sh", "-c", script) as process:
        process.kill()
        process.wait()
        assert process.stdout is not None
        assert process.stdout.read() == "-38\n"  # until the program has closed it


# -- doctor ------------------------------------------------------------------------------------------------------------


def test_the_doctor_says_what_this_host_allows() -> None:
    """A line for each thing that is needed; the exit status is 0 where all of them are there."""
    done = numaemu("doctor")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert [line.split()[0] for line in lines[:2]] == ["ok", "ok"]
    assert "mount namespace" in done.stdout
    found = json.loads(numaemu("doctor", "--json").stdout)
    assert [one["what"] for one in found] == [line.split(maxsplit=1)[1].split(":")[0] for line in lines]


def test_the_doctor_tells_a_sandbox_that_refuses(run: Run) -> None:
    """Where a supervisor is already there, it says no, why, and what to do; exit status 1."""
    done = run(sys.executable, "-m", "numaemu", "doctor")
    assert done.returncode == 1
    assert "no    seccomp notifications: Device or resource busy; " in done.stdout


def test_the_doctor_names_what_an_outer_filter_refuses() -> None:
    """A container whose profile refuses mbind gets to know that, and which right it lacks."""
    done = subprocess.run(
        [sys.executable, PROGRAMS / "contained.py", "EPERM", sys.executable, "-m", "numaemu", "doctor"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "no    seccomp notifications: an outer filter refuses mbind, " in done.stdout
    assert "CAP_SYS_NICE" in done.stdout
