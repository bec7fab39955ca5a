"""Which files are memory of the host."""

import pytest

from numaemu_run.mounts import Mounts, own_mounts

MOUNTS = Mounts(
    """\
20 1 8:1 / / rw - ext4 /dev/root rw
21 20 0:20 / /dev rw,nosuid - devtmpfs devtmpfs rw
22 21 0:21 / /dev/memory rw,nosuid shared:3 - tmpfs tmpfs rw
23 20 0:22 / /srv rw - tmpfs tmpfs rw
24 20 0:23 / /srv rw - fuse.something something rw
"""
)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/dev/memory/one", True),
        ("/dev/memory/a/b (deleted)", True),
        ("/dev/memory", True),
        ("/dev/memories", False),
        ("/srv/one", False),
        ("/home/one", False),
        ("/", False),
        ("/memfd:a/b (deleted)", True),
    ],
)
def test_a_path_is_memory_by_its_mount(path: str, *, expected: bool) -> None:
    """The longest that it lies in, and of several at one place the last one; memfds have none."""
    assert MOUNTS.is_memory_path(path) is expected


def test_a_device_is_memory_as_its_file_system_is() -> None:
    """Also where another one covers it; what is not mounted is none."""
    devices = ("00:15", "00:16", "00:14", "08:01", "09:09")
    assert [MOUNTS.is_memory_device(device) for device in devices] == [True, True, False, False, False]


def test_mounts_of_this_host_are_understood() -> None:
    """Whatever they are: /proc is none."""
    assert not own_mounts().is_memory_path("/proc/self/mountinfo")
