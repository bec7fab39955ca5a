"""Starting children through multiprocess's forkserver, which init keeps alive.

The forkserver has imported what the children need, so a child is there in milliseconds; it must never hold a ZeroMQ
context, and neither must init. It is the parent of the children in the host's eyes, but nobody depends on it: when it
or the resource tracker dies, `ensure_running` makes a new one, and the children live on.

multiprocess tells neither process's pid, hence the look at its private names; all of them are in this file.
"""

import os
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import multiprocess
from multiprocess import forkserver, process, resource_tracker

from numaemu_host import pidfd

FORKSERVER: Final = "forkserver"
TRACKER: Final = "tracker"

_KILL_WAIT_S: Final = 2.0
#: The forkserver reaps a dead child at once; so long is waited for that, as a zombie would outlive us.
_REAP_WAIT_S: Final = 0.5


class ChildStarter:
    """Starts processes; `helper_pids` says who does the work."""

    def __init__(self, directory: Path, preload: Sequence[str]) -> None:
        """Start the forkserver, which imports the modules of `preload` while the caller goes on."""
        # Its socket lies in the machine's directory and goes with it; a folder in /tmp would outlive a killed init.
        process.current_process()._config["tempdir"] = str(directory)  # noqa: SLF001 - there is no public setting
        self._context = multiprocess.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        # That a tracker died is in our log; this line would be no JSON.
        warnings.filterwarnings("ignore", message="resource_tracker: process died")
        self.ensure_running()

    def ensure_running(self) -> None:
        """Start the forkserver and the tracker if they are dead. OSError where the host refuses."""
        forkserver.ensure_running()

    def helper_pids(self) -> dict[str, int]:
        """The pids of the forkserver and the resource tracker by their roles, as far as they have been started."""
        server: int | None = forkserver._forkserver._forkserver_pid  # noqa: SLF001 - there is no public name for it
        tracker: int | None = resource_tracker._resource_tracker._pid  # noqa: SLF001 - there is no public name for it
        return {role: pid for role, pid in ((FORKSERVER, server), (TRACKER, tracker)) if pid is not None}

    def start(self, entry: Callable[[Any], None], config: object) -> int:
        """Start a child that calls `entry(config)`, and return its pid. OSError if that did not work."""
        self._replace_stopped()
        child = self._context.Process(target=entry, args=(config,), daemon=True)
        try:
            child.start()
        except EOFError as error:
            raise OSError(f"the forkserver died: {error}") from None
        return int(child.pid)

    def _replace_stopped(self) -> None:
        """Kill a forkserver that is stopped: it owns nothing, and waiting for it would stop init too."""
        pid = self.helper_pids().get(FORKSERVER)
        if pid is not None and pidfd.is_stopped(pid):
            _kill(pid)

    def end(self) -> None:
        """End the forkserver and the tracker, after all children are dead."""
        deadline = time.monotonic() + _REAP_WAIT_S
        for child in multiprocess.active_children():
            child.join(max(0.0, deadline - time.monotonic()))
        for pid in self.helper_pids().values():
            _kill(pid)
            _reap(pid)


def _kill(pid: int) -> None:
    """SIGKILL a child of ours, whose number stays its own until it is reaped, and wait until it is over."""
    try:
        descriptor = pidfd.open_pidfd(pid)
    except ProcessLookupError:
        return
    try:
        pidfd.send_signal(descriptor, signal.SIGKILL)
        pidfd.wait_exit(descriptor, _KILL_WAIT_S)
    finally:
        os.close(descriptor)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
