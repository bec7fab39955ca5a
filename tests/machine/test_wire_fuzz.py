"""Well-formed calls with arguments that nobody would think of, by a client that said hello, to a machine of processes.

`WIRE_EXAMPLES=200000 pytest tests/machine/test_wire_fuzz.py` sends as many; without it a few thousand. A seed that
fails is printed; `WIRE_SEED` replays it.
"""

import os
import random
from collections.abc import Callable
from typing import Any, Final

import pytest
import zmq

import numaemu as nm
from numaemu import places
from numaemu_core import wire
from numaemu_core.errors import MmError

Boot = Callable[..., nm.Machine]

CALLS: Final = int(os.environ.get("WIRE_EXAMPLES", "2500"))
SEED: Final = int(os.environ.get("WIRE_SEED", "7"))
PAGE: Final = 4096
#: Calls that begin or end what is to go on: the client, its connection, and the check, which is made at the end.
LEFT_OUT: Final = frozenset({"hello", "join", "leave", "fsck"})
EDGES: Final = (0, 1, -1, 2, 3, PAGE, PAGE - 1, 1 << 20, 1 << 31, 1 << 47, (1 << 47) - PAGE, 1 << 63, (1 << 64) - 1)


class Fuzz:
    """Draws calls; remembers what answers gave, so that some arguments mean something."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.pids = [1]
        self.addresses = [0x2AAAAAAAB000]
        self.names = ["f", "g", "", "x" * 255, "ä/\0"]

    def number(self) -> int:
        draw = self.draw
        match draw.randrange(5):
            case 0:
                return draw.choice(EDGES)
            case 1:
                return draw.choice(self.addresses) + draw.randrange(-2, 40) * PAGE // draw.choice((1, 1, 1, 3))
            case 2:
                return draw.randrange(16)
            case 3:
                return 1 << draw.randrange(64)
            case _:
                return draw.randrange(32) * PAGE

    def argument(self, check: object, first: object) -> Any:  # noqa: ANN401 - of any type that the call takes
        draw = self.draw
        if draw.random() < 0.02:
            return draw.choice([None, "text", b"bytes", [[[]]], {"a": 1}, 1.5, True, -1])
        if check is wire.number:
            return draw.choice(self.pids) if first is check else draw.choice([*self.pids, abs(self.number())])
        if check is wire.pid_t:
            return draw.choice([0, *self.pids, self.number()])
        if check is wire.ulong:
            return self.number()
        if check is wire.flag:
            return draw.random() < 0.5
        if check is wire.text:
            return draw.choice([*self.names, "tmpfs", "ramfs", "disk", "r", "r+"])
        if check is wire.octets:
            return bytes(draw.randrange(3 * PAGE))
        if check is wire.mask_words:
            return [draw.choice((0, 1, 2, 3, (1 << 64) - 1)) for _ in range(draw.choice((0, 1, 1, 1, 2, 64)))]
        if check is wire.names:
            return draw.sample(["CAP_SYS_NICE", "CAP_SYS_ADMIN", "CAP_IPC_LOCK", "CAP_SYS_RESOURCE", "no"], 2)
        return draw.choice([None, None, [], [0], [1, 0, 5], [self.number() & 0x7FFF], 0, 1, "f", "r+"])

    def call(self) -> tuple[str, list[Any]]:
        name = self.draw.choice(sorted(wire.CALLS.keys() - LEFT_OUT))
        if name == "exit" and self.draw.random() < 0.8:
            name = "mmap"
        checks = wire.CALLS[name]
        args = [self.argument(check, checks[0] if not at else None) for at, check in enumerate(checks)]
        if name == "mmap" and self.draw.random() < 0.7:
            args[1:] = [0, self.draw.randrange(1, 64) * PAGE, 3, self.draw.choice((0x22, 0x21, 0x8022)), None, 0, "r+"]
        if name == "mbind" and self.draw.random() < 0.7:
            args[1:] = [self.draw.choice(self.addresses), 16 * PAGE, self.draw.randrange(8), [3], 65, 2]
        if name == "fault" and self.draw.random() < 0.7:
            args[1:] = [self.draw.choice(self.addresses), 8 * PAGE, True]
        return name, args

    def learn(self, name: str, result: Any) -> None:  # noqa: ANN401 - as the call has it
        if name in ("attach", "fork", "adopt"):
            self.pids = [*self.pids[-12:], result[0]]
        elif name in ("mmap", "mremap", "brk"):
            self.addresses = [*self.addresses[-20:], result]


@pytest.mark.timeout(0)  # as long as WIRE_EXAMPLES asks for
def test_calls_with_random_arguments_leave_the_machine_sound(
    boot: Boot, pid_of: Callable[..., int], record_property: Callable[[str, object], None]
) -> None:
    """Each call gets a result or an errno; in the end fsck is clean, and the daemon is the one of the start."""
    machine = boot(swap="8M")
    pid = pid_of(machine, "kernel")
    peer = machine._attachment.peer  # noqa: SLF001 - the token: the library would check arguments itself
    fuzz, served, refused = Fuzz(SEED), 0, 0
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.linger = 0
        sock.rcvtimeo = 60_000
        sock.connect(f"ipc://{places.machine_dir(machine.name) / places.CALLS_SOCKET}")
        sock.send(wire.pack_request(peer.boot_id, 1, "hello", [peer.token]))
        wire.unpack_reply(sock.recv())
        for number in range(2, CALLS + 2):
            name, args = ("attach", [0, [], None]) if number % 50 == 2 else fuzz.call()
            try:
                body = wire.pack_request(peer.boot_id, number, name, args)
            except MmError:  # it cannot be packed
                continue
            sock.send(body)
            try:
                answer = sock.recv()
            except zmq.Again:
                pytest.fail(f"no answer to {name}{args}, WIRE_SEED={SEED}")
            try:
                fuzz.learn(name, wire.unpack_reply(answer)[2])
                served += 1
            except MmError as refusal:
                assert refusal.request_id in (number, 0), (name, args)  # noqa: PT017 - both outcomes are right
                refused += 1
            except wire.WireError as error:
                pytest.fail(f"{name}{args}: {error}, WIRE_SEED={SEED}")
        record_property("calls", f"{served} served, {refused} refused")
    assert served > CALLS // 10
    assert refused > CALLS // 10
    assert machine.fsck() == []
    assert pid_of(machine, "kernel") == pid, f"the daemon died, WIRE_SEED={SEED}"
