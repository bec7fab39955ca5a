"""Opening files: those that tell of nodes are answered with a descriptor of the machine's text, others let through."""

import contextlib
import errno
import os
import posixpath
import re
import struct
from pathlib import Path
from typing import Final

from numaemu_core.layout import NUMA_COUNTERS
from numaemu_core.nodemask import node_list, nodes_of
from numaemu_core.profiles import profile_named
from numaemu_core.views import meminfo as node_meminfo
from numaemu_run import target, views
from numaemu_run.family import Family
from numaemu_run.kernel import Kernel
from numaemu_run.node_tree import COVERED, NODE_DIR, NodeTree
from numaemu_run.procfs import status_of
from numaemu_run.seccomp import Notification

AT_FDCWD: Final = -100
#: struct open_how: flags, mode, resolve.
_HOW: Final = struct.Struct("=QQQ")
#: Of `resolve`, all but RESOLVE_NO_MAGICLINKS and RESOLVE_CACHED: those change where a path leads, or whether it may.
_RESOLVE_OTHERWISE: Final = ~0x22
#: Why arguments cannot be read: what the host is to say itself.
_HOSTS_BUSINESS: Final = frozenset({errno.EPERM, errno.EFAULT, errno.ENAMETOOLONG})
#: Last parts of paths that may be answered; others are let through without a look at where they begin.
_NAMES: Final = frozenset(
    {
        b"cpuset.cpus",
        b"cpuset.cpus.effective",
        b"cpuset.effective_cpus",
        b"cpuset.effective_mems",
        b"cpuset.mems",
        b"cpuset.mems.effective",
        b"meminfo",
        b"numa_maps",
        b"numastat",
        b"stat",
        b"status",
        b"vmstat",
    }
)
_OF_TASK: Final = re.compile(r"/proc/(self|thread-self|\d+)(?:/task/(\d+))?/(status|stat|numa_maps)")
_OF_NODE: Final = re.compile(re.escape(NODE_DIR) + r"/node(\d+)/(meminfo|numastat|vmstat)")
_OF_CPUSET: Final = re.compile(r"/sys/fs/cgroup/.*/?cpuset\.(?:effective_)?(cpus|mems)(?:\.effective)?")
#: How nodeN/vmstat calls the counters of numastat, in their order.
_IN_VMSTAT: Final = ("numa_hit", "numa_miss", "numa_foreign", "numa_interleave", "numa_local", "numa_other")


class Files:
    """Answers for paths."""

    def __init__(self, kernel: Kernel, family: Family, tree: NodeTree, root: Path, *, mounted: bool) -> None:
        """`root`: where the tree of nodes lies; `mounted`: the program has it where the kernel has its own."""
        self._kernel = kernel
        self._family = family
        self._tree = tree
        self._root = str(root)
        self._mounted = mounted
        self._nodes = frozenset(node.id for node in tree.topology.nodes)
        self._of_2005 = profile_named(tree.topology.profile).views_of_2005

    # -- which path is meant -------------------------------------------------------------------------------------------

    def path_of(self, call: Notification, directory: int, address: int) -> str | None:
        """The path that a call names, if it may be one that is answered.

        None, too, if it cannot be read: the host knows the error, or may look where we may not (EPERM).

        Raises:
            ProcessLookupError: the caller is gone.
        """
        try:
            path = target.read_path(call.tid, address)
        except OSError as error:
            if error.errno in _HOSTS_BUSINESS:
                return None
            raise
        if path.startswith(b"/"):
            if not path.startswith((b"/proc/", b"/sys/", b"//")):
                return None
            return posixpath.normpath("/" + os.fsdecode(path).lstrip("/"))
        if self._mounted and path.rpartition(b"/")[2] not in _NAMES:
            return None
        number = (directory + (1 << 31)) % (1 << 32) - (1 << 31)
        link = f"/proc/{call.tid}/cwd" if number == AT_FDCWD else f"/proc/{call.tid}/fd/{number}"
        try:
            base = str(Path(link).readlink())
        except OSError:
            return None
        base = base.removeprefix(self._root) if base.startswith(self._root + "/") else base
        return posixpath.normpath(posixpath.join(base, os.fsdecode(path)))

    def in_tree(self, path: str | None) -> Path | None:
        """Where in the tree of nodes a path leads, if that is not mounted."""
        if self._mounted or path is None:
            return None
        covered = any(path == place or path.startswith(place + "/") for place in COVERED)
        return Path(self._root + path) if covered else None

    # -- opening -------------------------------------------------------------------------------------------------------

    def opened(self, name: str, call: Notification) -> tuple[int, int] | None:
        """A descriptor of ours for a call that opens a file, and its flags in the program; None: it is not answered.

        Raises:
            OSError: the file cannot be opened.
        """
        arguments = open_arguments(name, call)
        if arguments is None:
            return None
        directory, address, flags = arguments
        path = self.path_of(call, directory, address)
        if path is None or flags & (os.O_ACCMODE | os.O_CREAT):
            return None
        # The host has each of these files as well: it gives their places, and refuses them as directories.
        text = None if flags & (os.O_PATH | os.O_DIRECTORY) else self._text(path, call.tid)
        if text is not None:
            return _descriptor(posixpath.basename(path), text, flags & os.O_NONBLOCK), flags & os.O_CLOEXEC
        place = self.in_tree(path)
        if place is None:
            return None
        # A descriptor that is only a place cannot be handed over: one for reading does as well.
        return os.open(place, flags & ~os.O_PATH | os.O_CLOEXEC), flags & os.O_CLOEXEC

    def _text(self, path: str, tid: int) -> str | None:
        """What is in a file that the machine decides about; None: that is none."""
        if (of_task := _OF_TASK.fullmatch(path)) is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                return self._of_task(of_task, tid)
            return None
        if (of_node := _OF_NODE.fullmatch(path)) is not None:
            return self._of_node(int(of_node[1]), of_node[2])
        if path == "/proc/meminfo":
            self._family.look_at_all()
            return views.meminfo(views.host_text(path), self._kernel.machine.figures("meminfo"))
        if (of_cpuset := _OF_CPUSET.fullmatch(path)) is not None and Path(path).exists():
            mask = self._tree.cpus if of_cpuset[1] == "cpus" else self._tree.memory_nodes
            return node_list(list(nodes_of(mask))) + "\n"
        return None

    def _of_task(self, found: re.Match[str], tid: int) -> str | None:
        who, member, name = found.groups()
        if who == "self":
            number = int(member or status_of(tid).tgid)
        else:
            number = int(member or (tid if who == "thread-self" else who))
        if not self._family.is_member(number):
            return None
        thread = self._family.thread(number)
        if name == "stat":
            of_one = member is not None or who == "thread-self"
            return views.stat(views.host_text(f"/proc/{number}{f'/task/{number}' * of_one}/stat"), thread.cpu)
        if name == "status":
            mems = self._kernel.mems_allowed(thread.task)
            return views.status(views.host_text(f"/proc/{number}/status"), thread, self._tree, mems)
        self._family.settle(thread)
        return views.numa_maps(self._kernel.numa_maps(thread.task), thread.process.mirror.areas, of_2005=self._of_2005)

    def _of_node(self, node: int, name: str) -> str | None:
        """None: there is no such node."""
        if node not in self._nodes:
            return None
        self._family.look_at_all()
        machine = self._kernel.machine
        if name == "meminfo":
            return node_meminfo(*machine.figures("meminfo", node), of_2005=self._of_2005)
        counters = next(row for nid, row in machine.figures("numastat") if nid == node)
        if name == "numastat":
            return "".join(f"{key} {value}\n" for key, value in zip(NUMA_COUNTERS, counters, strict=True))
        (figures,) = machine.figures("meminfo", node)
        pages = (figures["MemFree"] << 10) // self._tree.topology.page_size
        lines = [f"nr_free_pages {pages}", *(f"{key} {value}" for key, value in zip(_IN_VMSTAT, counters, strict=True))]
        return "\n".join(lines) + "\n"


def open_arguments(name: str, call: Notification) -> tuple[int, int, int] | None:
    """Directory, address of the path, flags; None: the host is to say what is wrong, or how the path is meant."""
    if name == "open":
        return AT_FDCWD, call.args[0], call.args[1]
    if name == "openat":
        return call.args[0], call.args[1], call.args[2]
    if call.args[3] < _HOW.size:
        return None
    try:
        flags, _, resolve = _HOW.unpack(target.read(call.tid, call.args[2], _HOW.size))
    except OSError as error:
        if error.errno in _HOSTS_BUSINESS:
            return None
        raise
    return None if resolve & _RESOLVE_OTHERWISE else (call.args[0], call.args[1], flags)


def _descriptor(name: str, text: str, flags: int) -> int:
    """A file with that text, open for reading, and with `flags`."""
    writing = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        with open(writing, "wb", closefd=False) as file:
            file.write(text.encode(errors="surrogateescape"))
        return os.open(f"/proc/self/fd/{writing}", os.O_RDONLY | os.O_CLOEXEC | flags)
    finally:
        os.close(writing)
