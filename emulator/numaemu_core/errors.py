"""Three kinds of failure, never mixed.

NumaemuFailure
├── MmError            the caller's fault: carries the errno that the kernel gives, crosses the wire
│   ├── SegmentationFault   an access to an unmapped or protected address
│   │   └── BusError        an access to a mapping beyond the end of its file
│   └── OutOfMemory         no frame under the policy
├── PeerError          another process died, or answered what it must not
├── TopologyError      a machine was described in a way that cannot be
└── BugError           an invariant of ours does not hold; the process ends
"""

import errno


class NumaemuFailure(Exception):
    """Root of what the core and the daemon raise by themselves."""


class MmError(NumaemuFailure):
    """A system call refused: `errno` is the kernel's number, `detail` one line of what was wrong."""

    def __init__(self, number: int, detail: str = "") -> None:
        self.errno = number
        #: The request that was refused, where one was.
        self.request_id = 0
        self.detail = detail
        super().__init__(f"[{errno.errorcode.get(number, number)}] {detail}")


class SegmentationFault(MmError):
    """An access to an address that is not mapped, or not mapped for this kind of access."""

    def __init__(self, address: int, detail: str = "") -> None:
        self.address = address
        super().__init__(errno.EFAULT, detail or f"address {address:#x} may not be accessed so")


class BusError(SegmentationFault):
    """An access to a page of a mapping that lies beyond the end of its file: SIGBUS, not SIGSEGV."""


class OutOfMemory(MmError):
    """No frame is left where the policy in force allows one."""

    def __init__(self, detail: str = "no frame is left under the policy") -> None:
        super().__init__(errno.ENOMEM, detail)


class PeerError(NumaemuFailure):
    """A process of the machine died or broke the protocol."""


class TopologyError(NumaemuFailure):
    """The description of a machine has a hole in it; the message names the field and what was expected."""


class BugError(NumaemuFailure):
    """One of our own invariants is broken: never caught, the process ends with its story."""
