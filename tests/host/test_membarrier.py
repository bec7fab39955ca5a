"""membarrier."""

import ctypes
import errno
import os

import pytest

from numaemu_host import membarrier


def test_registers_and_orders() -> None:
    """Where the host lets a process register, registering again and the barrier itself succeed too."""
    if not membarrier.register():
        pytest.skip("the host refuses membarrier")
    assert membarrier.register()
    membarrier.barrier()


def test_refusal_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host refuses, registering says False and the barrier raises the errno."""

    def refuse(*_: int) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(membarrier, "_syscall", refuse)
    assert not membarrier.register()
    with pytest.raises(PermissionError):
        membarrier.barrier()


def test_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose system call number is not known, the kernel's refusal is passed on."""
    monkeypatch.setattr(membarrier, "_number", -1)
    assert not membarrier.register()
    with pytest.raises(OSError, match=os.strerror(errno.ENOSYS)):
        membarrier.barrier()
