"""Where machines live: a directory each, below one directory a user.

$NUMAEMU_RUNTIME, or $XDG_RUNTIME_DIR/numaemu, or /tmp/numaemu-UID      (0700)
    NAME/                                                              (0700)
        kernel.ipc   the calls (ZeroMQ)       fd.sock   descriptors of shared memory
        init.sock    status and down          log       what the processes have to say, a JSON object a line
        server.key   of a machine on TCP that was given none (0600)
    NAME+visitors/                                                     (0711) of a machine that admits other users
        kernel.ipc   the calls (ZeroMQ)       fd.sock   who they are; it gives no descriptor

Where the directory above is $XDG_RUNTIME_DIR/numaemu, which nobody else can pass through, NAME+visitors is in
/tmp/numaemu-UID (0711).
"""

from __future__ import annotations

import os
import pwd
import re
import stat
from pathlib import Path
from typing import Final

from numaemu_core import limits

_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{limits.MACHINE_NAME_MAX - 1}}}", re.ASCII)
_OWNER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
#: A socket's path is at most 107 bytes, and the daemon binds some with names of up to 20 bytes in the directory.
_DIRECTORY_BYTES_MAX: Final = 80

CALLS_SOCKET: Final = "kernel.ipc"
DESCRIPTOR_SOCKET: Final = "fd.sock"
INIT_SOCKET: Final = "init.sock"
LOG: Final = "log"
SERVER_KEY: Final = "server.key"
#: What is added to a machine's name for the directory of other users; no name has a +.
VISITORS: Final = "+visitors"


def runtime_dir() -> Path:
    """The directory with all machines of this user; it need not exist."""
    told = os.environ.get("NUMAEMU_RUNTIME")
    if told:
        return Path(told).absolute()
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and _is_ours(Path(session)):
        return Path(session) / "numaemu"
    return Path(f"/tmp/numaemu-{os.getuid()}")  # noqa: S108 - used only if it is ours alone, see make_machine_dir


def machine_dir(name: str) -> Path:
    """The directory of a machine; it need not exist.

    Raises:
        ValueError: the name is none, or the path is too long for a socket.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a machine's name has 1 to {limits.MACHINE_NAME_MAX} characters of A-Z a-z 0-9 . _ -, "
            f"a letter or digit first, got {name!r}"
        )
    place = runtime_dir() / name
    length = len(os.fsencode(place))
    if length > _DIRECTORY_BYTES_MAX:
        raise ValueError(
            f"{place} is too long for sockets by {length - _DIRECTORY_BYTES_MAX} bytes: "
            "set NUMAEMU_RUNTIME to a shorter directory"
        )
    return place


def visitors_dir(place: Path) -> Path:
    """The directory that a machine has for other users, beside `place`, its own; it need not exist."""
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and place.parent == Path(session) / "numaemu":
        return _shared_dir(os.getuid()) / (place.name + VISITORS)
    return place.with_name(place.name + VISITORS)


def find(name: str) -> Path:
    """The directory of the machine that is meant; it need not exist.

    NAME: a machine of this user; where there is none, one of that name in $NUMAEMU_RUNTIME or of root that admits other
    users. OWNER/NAME: one of that user (a name or uid) that does. An absolute path: that directory.

    Raises:
        ValueError: that is no name. PermissionError: somebody else has put a directory where the owner's should be.
    """
    if name.startswith("/"):
        return Path(name)
    owner, slash, plain = name.rpartition("/")
    if slash and _OWNER.fullmatch(owner):
        return _of_owner(_uid_of(owner), plain)
    place = machine_dir(name)
    if _belongs_to(place, os.getuid()):
        return place
    candidates = [place.with_name(name + VISITORS)] if os.environ.get("NUMAEMU_RUNTIME") else []
    # Root sees whatever this user writes anywhere: nothing is lost to it by a name that was meant otherwise.
    candidates += [path for path in [_shared_dir(0) / (name + VISITORS)] if _belongs_to(path.parent, 0)]
    return next((path for path in candidates if path.is_dir()), place)


def is_for_visitors(place: Path) -> bool:
    """Is it the directory that a machine has for other users?"""
    return place.name.endswith(VISITORS)


def _of_owner(uid: int, name: str) -> Path:
    machine_dir(name)  # is it a name?
    parent = _shared_dir(uid)
    if parent.exists() and not _belongs_to(parent, uid):
        raise PermissionError(f"{parent} does not belong to uid {uid}")
    return parent / (name + VISITORS)


def _uid_of(owner: str) -> int:
    if owner.isascii() and owner.isdecimal():
        return int(owner)
    try:
        return pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise ValueError(f"expected OWNER/NAME with a user of this host, got the user {owner!r}") from None


def _belongs_to(path: Path, uid: int) -> bool:
    try:
        return path.lstat().st_uid == uid
    except OSError:
        return False


def _shared_dir(uid: int) -> Path:
    return Path(f"/tmp/numaemu-{uid}")  # noqa: S108 - whose it is is looked at before it is used


def make_machine_dir(place: Path) -> None:
    """Make a machine's directory, and the one above it, for this user alone; that they exist already is no error.

    Raises:
        PermissionError: one of them belongs to somebody else, or others may enter it.
        OSError: it cannot be made.
    """
    for path in (place.parent, place):
        path.mkdir(mode=0o700, parents=path is not place, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(f"{path} is not a directory that only this user can write to")
    place.chmod(0o700)


def machine_names() -> list[str]:
    """The names of all machines of this user that have a directory, sorted."""
    try:
        return sorted(path.name for path in runtime_dir().iterdir() if path.is_dir() and _NAME.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_ours(path: Path) -> bool:
    """Whether this user can make machines in it."""
    try:
        return path.is_dir() and path.stat().st_uid == os.getuid() and os.access(path, os.W_OK | os.X_OK)
    except OSError:
        return False
