"""Calls that look at a path, where the tree of nodes could not be mounted: stat, access and readlink and their kin.

Source: asm/stat.h of x86_64 and asm-generic/stat.h, linux/stat.h (struct statx), fs/stat.c (6.12).
"""

import errno
import os
import struct
from typing import Final

from numaemu_run import target
from numaemu_run.abi import X86_64, Abi
from numaemu_run.files import Files
from numaemu_run.seccomp import Notification

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_STATX_BASIC: Final = 0x7FF
_STAT_X86: Final = struct.Struct("=3Q4IQ3q6q24x")
_STAT_GENERIC: Final = struct.Struct("=2Q4I2Qqi4xq6q8x")
_STATX: Final = struct.Struct("=IIQIIIHxxQQQQ" + "qI4x" * 4 + "IIII112x")
#: Where directory, path and the rest lie among the arguments of each call.
_WITHOUT_DIRECTORY: Final = frozenset(
    {"access", "getxattr", "lgetxattr", "listxattr", "llistxattr", "lstat", "readlink", "stat"}
)


class PathCalls:
    """Answers them for paths of the tree."""

    def __init__(self, files: Files, abi: Abi) -> None:
        """`files` knows which paths these are."""
        self._files = files
        self._x86 = abi is X86_64

    def answer(self, name: str, call: Notification) -> int | None:
        """What the call returns; None: it is for the host. OSError: it fails so."""
        args = (_AT_FDCWD, *call.args) if name in _WITHOUT_DIRECTORY else call.args
        directory, address, *rest = args
        place = self._files.in_tree(self._files.path_of(call, directory, address))
        if place is None:
            return None
        match name:
            case "access" | "faccessat" | "faccessat2":
                if not place.exists():
                    raise FileNotFoundError(errno.ENOENT, str(place))
                if not os.access(place, rest[0] & (os.R_OK | os.W_OK | os.X_OK)):
                    raise PermissionError(errno.EACCES, str(place))
            case "getxattr" | "lgetxattr":
                raise OSError(errno.ENODATA, str(place))
            case "listxattr" | "llistxattr":
                return 0
            case "readlink" | "readlinkat":
                text = os.fsencode(place.readlink())[: rest[1]]
                target.write(call.tid, rest[0], text)
                return len(text)
            case "statx":
                found = place.stat(follow_symlinks=not rest[0] & _AT_SYMLINK_NOFOLLOW)
                target.write(call.tid, rest[2], _statx(found))
            case _:
                stays = name == "lstat" or (name == "newfstatat" and rest[1] & _AT_SYMLINK_NOFOLLOW)
                target.write(call.tid, rest[0], self._stat(place.stat(follow_symlinks=not stays)))
        return 0

    def _stat(self, found: os.stat_result) -> bytes:
        times = [part for ns in _times(found)[:3] for part in divmod(ns, _NS)]
        mode, link, owner = found.st_mode, found.st_nlink, (found.st_uid, found.st_gid)
        size, block, blocks = found.st_size, found.st_blksize, found.st_blocks
        if self._x86:
            return _STAT_X86.pack(found.st_dev, found.st_ino, link, mode, *owner, 0, 0, size, block, blocks, *times)
        return _STAT_GENERIC.pack(found.st_dev, found.st_ino, mode, link, *owner, 0, 0, size, block, blocks, *times)


def _times(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns


def _statx(found: os.stat_result) -> bytes:
    access, modified, changed = (divmod(ns, _NS) for ns in _times(found))
    return _STATX.pack(
        _STATX_BASIC,
        found.st_blksize,
        0,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_mode,
        found.st_ino,
        found.st_size,
        found.st_blocks,
        0,
        *access,
        *(0, 0),
        *changed,
        *modified,
        *(0, 0),
        os.major(found.st_dev),
        os.minor(found.st_dev),
    )


_NS: Final = 1_000_000_000
