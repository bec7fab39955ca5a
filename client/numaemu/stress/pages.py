"""What a stress page holds, and what is wrong with one that holds something else."""

import enum
import struct
from typing import Final

_TAG: Final = struct.Struct("<QQQQ")
_MAGIC: Final = 0x6E756D61656D7521


class Verdict(enum.Enum):
    """What a page turned out to be."""

    RIGHT = "right"
    LOST = "lost"
    WRONG = "wrong"


def content(page_size: int, owner: int, page_index: int, version: int) -> bytes:
    """A whole page: its tag, again and again; zeros for version 0, which nobody has written."""
    if not version:
        return bytes(page_size)
    return _TAG.pack(_MAGIC, owner, page_index, version) * (page_size // _TAG.size)


def verify(found: bytes, owner: int, page_index: int, version: int) -> Verdict:
    """Compare a page with what was last written to it."""
    if found == content(len(found), owner, page_index, version):
        return Verdict.RIGHT
    if not any(found):
        return Verdict.LOST
    magic, said_owner, said_page, said_version = _TAG.unpack_from(found)
    earlier = (magic, said_owner, said_page) == (_MAGIC, owner, page_index) and said_version < version
    whole = found == content(len(found), owner, page_index, said_version) if earlier else False
    return Verdict.LOST if whole else Verdict.WRONG
