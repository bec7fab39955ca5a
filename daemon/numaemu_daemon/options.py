"""What a machine is started with, once the command line has been read and checked."""

from dataclasses import dataclass, field
from pathlib import Path

from numaemu_core.admission import Admission
from numaemu_core.topology import Topology

#: The kernel's endpoint for clients, in the machine's directory.
KERNEL_SOCKET = "kernel.ipc"
#: The kernel's endpoint for node processes and the swap node.
BUS_SOCKET = "bus.ipc"
#: Where the kernel hands clients their descriptors.
DESCRIPTOR_SOCKET = "fd.sock"
#: Where init hears its children and commands.
INIT_SOCKET = "init.sock"
#: Whoever holds it is the machine of this directory.
LOCK_FILE = "lock"
#: The keys of a machine on TCP that was given no file with some: made for it, and gone with it.
SERVER_KEY_FILE = "server.key"


@dataclass(frozen=True, slots=True)
class Options:
    """One machine to start; `ready_fd` is None when a person started it, `owner_pid` when nobody owns it."""

    directory: Path
    name: str
    topology: Topology
    ready_fd: int | None = None
    owner_pid: int | None = None
    #: Whom it admits beside its owner, and the directory for other users of this host, None if there are none.
    admission: Admission = field(default_factory=Admission)
    visitors: Path | None = None

    @property
    def endpoint(self) -> str:
        """Where clients find the kernel."""
        return f"ipc://{self.directory / KERNEL_SOCKET}"


class StartError(Exception):
    """The machine cannot be started or did not come up; the message is one line for whoever asked for it."""
