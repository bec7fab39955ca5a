"""A mount namespace of the program's own, in which the emulated tree lies over the host's.

A process that may mount takes just that; another one makes itself a user namespace first, in which its own user and
group stand for themselves and for nobody else.
Source: user_namespaces(7), mount(2).
"""

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from numaemu_host.libc import checked, failure, libc

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_MS_BIND: Final = 0x1000
_MS_REC: Final = 0x4000
_MS_SLAVE: Final = 1 << 19
#: Of the reason for a failure, so much is told.
_TOLD_BYTES: Final = 4096


def refusal(root: Path, directories: Sequence[str], needed: Sequence[str]) -> str:
    """Why `enter` and `cover` would fail, or leave out what is needed; empty: they work.

    Tried in a process of its own: nobody comes back from a user namespace in which he is nobody, and a host may allow
    that and then refuse the rest (Ubuntu 24.04, by AppArmor).
    """

    def try_it() -> None:
        enter()
        covered = cover(root, directories)
        for name in needed:
            if name not in covered:
                raise OSError(errno.ENOENT, f"the host has no {name}")

    return trial(try_it)


def trial(body: Callable[[], None]) -> str:
    """Why something fails in a process of its own; empty: it works."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is told, and the child must end here
            os.write(writer, (str(error) or repr(error)).encode()[:_TOLD_BYTES])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    os.waitpid(pid, 0)
    return text


def enter() -> None:
    """Leave the mounts of the others, for good; theirs still reach us.

    Raises:
        OSError: neither way is allowed.
    """
    if libc.unshare(_CLONE_NEWNS):
        if ctypes.get_errno() != errno.EPERM:
            raise failure("mount namespace")
        uid, gid = os.geteuid(), os.getegid()
        checked(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "user namespace")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    checked(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None), "propagation of mounts")


def cover(root: Path, directories: Sequence[str]) -> list[str]:
    """Lay directories below `root` over those of the same names; gives those that the host has.

    Raises:
        OSError: a mount is refused.
    """
    covered = []
    for name in directories:
        if not Path(name).is_dir():
            continue
        source = os.fsencode(root / name[1:])
        checked(
            libc.mount(source, os.fsencode(name), None, ctypes.c_ulong(_MS_BIND | _MS_REC), None), f"mount on {name}"
        )
        covered.append(name)
    return covered
