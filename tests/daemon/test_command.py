"""The command line of the daemon."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import numaemu_daemon
from numaemu_daemon import logs
from numaemu_daemon.__main__ import main, read_options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "../x"], "--name: expected"),
        (["--name", "x" * 33], "--name: expected up to 32"),
        (["--owner-pid", "0"], "--owner-pid: expected a process id"),
        (["--owner-pid", "me"], "invalid int value"),
        (["--topology", "{"], "--topology: no JSON"),
        (["--topology", '{"node": []}'], "node: expected at least one"),
        (["--topology", "/no/such/file.toml"], "/no/such/file.toml: No such file"),
        (["--bogus"], "unrecognized arguments"),
    ],
)
def test_wrong_command_line_is_one_line_on_the_ready_fd(arguments: list[str], words: str) -> None:
    """Whoever waits for the ready line learns in one line what was wrong and expected."""
    read_fd, write_fd = os.pipe()
    assert main([*arguments, "--ready-fd", str(write_fd)]) == 2
    with os.fdopen(read_fd) as stream:
        lines = stream.read().splitlines()
    assert len(lines) == 1
    assert words in json.loads(lines[0])["error"]


def test_person_reads_the_error_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a descriptor the error is a line on stderr."""
    assert main(["--name", ""]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("numaemu_daemon: --name: expected")
    assert len(captured.err.splitlines()) == 1


def test_closed_ready_fd_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A descriptor that is not open is an error of the command line."""
    assert main(["--ready-fd", "991"]) == 2
    assert "--ready-fd: Bad file descriptor" in capsys.readouterr().err


def test_defaults() -> None:
    """Without arguments: two nodes of 64M, swap 128M."""
    options = read_options([])
    assert [node.memory_bytes for node in options.topology.nodes] == [64 << 20] * 2
    assert options.topology.swap_bytes == 128 << 20
    assert (options.name, options.ready_fd, options.owner_pid) == ("default", None, None)
    assert options.endpoint == f"ipc://{options.directory}/kernel.ipc"


def test_topology_file_and_users(tmp_path: Path) -> None:
    """A TOML file has the shape of the JSON object; users are a list; a relative directory is made absolute."""
    path = tmp_path / "machine.toml"
    path.write_text('swap = "1M"\n[[node]]\nid = 3\nmemory = "8M"\ncpus = [0, 1]\n')
    options = read_options(["--topology", str(path), "--dir", "here"])
    assert [node.id for node in options.topology.nodes] == [3]
    assert options.directory == Path.cwd() / "here"


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """`--help` explains the ready line and needs neither numpy nor ZeroMQ."""
    roots = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    roots.append(str(Path(str(numaemu_daemon.__file__)).parents[1]))
    code = (
        "import sys\nfrom numaemu_daemon.__main__ import main\n"
        "try:\n    main(['--help'])\nfinally:\n    print({'numpy', 'zmq', 'structlog'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, roots))}
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=20, check=True).stdout
    assert '"ready": true' in output
    assert output.endswith("set()\n")


def test_log_lines_are_json_with_fixed_keys(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event is a line of JSON with time, level and who says it; levels below the chosen one are left out."""
    monkeypatch.setenv(logs.LEVEL_VARIABLE, "warning")
    log = logs.configure("m", "node", 3)
    log.info(logs.Event.PROCESS_UP)
    log.warning(logs.Event.LOCK_OWNER_DIED, index=67)
    lines: list[dict[str, Any]] = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line.pop("ts")[-1] for line in lines] == ["Z"]
    expected = {"level": "warning", "event": "lock_owner_died", "role": "node", "node": 3, "machine": "m", "index": 67}
    assert lines == [expected | {"pid": os.getpid()}]
