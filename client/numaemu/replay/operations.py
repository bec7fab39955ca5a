"""What each line of a program asks for, in system calls, and what it reports."""

from __future__ import annotations

import errno
import struct
from collections import Counter
from typing import TYPE_CHECKING, Final

from numaemu.replay import moving, words
from numaemu.replay.host import Refused
from numaemu.replay.observations import numa_maps, pagemap, snap, statuses_of, where
from numaemu.replay.words import PAGE, address, flags, integer, length
from numaemu_core import uapi

if TYPE_CHECKING:
    from collections.abc import Callable

    from numaemu.replay.program import Program
    from numaemu.replay.records import Answer

_MASK_BITS_MAX: Final = PAGE * 8
#: What the interpreter filled its buffer for an edge with.
_UNWRITTEN: Final = "5a" * 8
_FILL_CHUNK_PAGES: Final = 4096
#: Words of a mask that the interpreter looks at.
_BUFFER_WORDS: Final = 64


# -- the runner's own --------------------------------------------------------------------------------------------------


def make_file(program: Program, kind: str, path: str, name: str, pages: str) -> Answer:
    """`- file Fk PAGES` and `- rfile Rk PAGES`."""
    full = f"{path}/{name}"
    ino = program.host.machine("create_file", full, kind, int(pages) * PAGE)
    program.files[name] = (full, ino)
    return {"ino12": ino % 12} if kind == "tmpfs" else {}


def sysctl(program: Program, path: str, value: str) -> Answer:
    """`- sysctl PATH VALUE`."""
    program.host.machine("sysctl", path, value)
    return {}


# -- mapping -----------------------------------------------------------------------------------------------------------

_MMAP_FLAGS: Final = {
    "priv": uapi.MAP_PRIVATE,
    "shared": uapi.MAP_SHARED,
    "populate": uapi.MAP_POPULATE,
    "locked": uapi.MAP_LOCKED,
    "noreplace": uapi.MAP_FIXED_NOREPLACE,
    "nofixed": 0,
    "noreserve": uapi.MAP_NORESERVE,
}


def mmap(program: Program, pid: int, *args: str) -> Answer:
    """`mmap addr len anon|Fk|Rk[:ro] priv|shared[,…] rights [offset]`."""
    addr, size, what, kinds, rights, *offset = args
    chosen = kinds.split(",")
    bits = 0
    for kind in chosen:
        bits |= _MMAP_FLAGS[kind]
    if not {"nofixed", "noreplace"} & set(chosen):
        bits |= uapi.MAP_FIXED
    file, readonly, ino = None, what.endswith(":ro"), None
    if what == "anon":
        bits |= uapi.MAP_ANONYMOUS
    else:
        name = what.removesuffix(":ro")
        if name not in program.files:
            return {"r": -1, "e": errno.ENOENT, "open": 1}
        file, ino = program.files[name]
    start = integer(offset[0]) * PAGE if offset else 0
    mode = "r" if readonly else "r+"
    at = program.host.call(pid, "mmap", address(addr), length(size), words.RIGHTS[rights], bits, file, start, mode)
    answer: Answer = {}
    if "nofixed" in chosen or at != address(addr):
        answer["at"] = (at - words.ARENA) // PAGE
    if bits & uapi.MAP_SHARED and not (file or "").startswith("/r/"):
        answer["ino12"] = 0 if ino is None else ino % 12
    return answer


def mremap(program: Program, pid: int, *args: str) -> Answer:
    """`mremap addr oldlen newlen flags [new]`."""
    addr, old, new, how, *target = args
    at = program.host.call(
        pid,
        "mremap",
        address(addr),
        length(old),
        length(new),
        words.mremap_flags(how),
        address(target[0]) if target else words.ARENA,
    )
    return {"at": (at - words.ARENA) // PAGE}


def _range_call(name: str) -> Callable[..., Answer]:
    def operation(program: Program, pid: int, addr: str, size: str) -> Answer:
        return {"r": program.host.call(pid, name, address(addr), length(size))}

    return operation


def mprotect(program: Program, pid: int, addr: str, size: str, rights: str) -> Answer:
    """`mprotect addr len rights`."""
    return {"r": program.host.call(pid, "mprotect", address(addr), length(size), words.RIGHTS[rights])}


def mlock_onfault(program: Program, pid: int, addr: str, size: str) -> Answer:
    """`mlock_onfault addr len`."""
    return {"r": program.host.call(pid, "mlock2", address(addr), length(size), uapi.MLOCK_ONFAULT)}


def madvise(program: Program, pid: int, addr: str, size: str, advice: str) -> Answer:
    """`madvise addr len NAME`."""
    number = words.ADVICE[advice] if advice in words.ADVICE else integer(advice)
    return {"r": program.host.call(pid, "madvise", address(addr), length(size), number)}


def pageout(program: Program, pid: int, addr: str, size: str) -> Answer:
    """`pageout addr len`."""
    return madvise(program, pid, addr, size, "pageout")


# -- touching ----------------------------------------------------------------------------------------------------------


def _touched(marks: str) -> Answer:
    answer: Answer = {"r": marks.count(".")}
    if answer["r"] < len(marks):
        answer["f"] = marks
    return answer


def touch_write(program: Program, pid: int, addr: str, count: str, tag: str) -> Answer:
    """`tw addr n tag`."""
    start = address(addr)
    first = (start - words.ARENA) // PAGE
    values = [int(tag) * 1000 + (first + i) % 1000 for i in range(int(count))]
    marks, _ = program.host.touch(pid, start, int(count), values)
    return _touched(marks)


def touch_read(program: Program, pid: int, addr: str, count: str) -> Answer:
    """`tr addr n`."""
    marks, values = program.host.touch(pid, address(addr), int(count), None)
    return {**_touched(marks), "v": values}


def file_write(program: Program, pid: int, name: str, page: str, count: str, tag: str) -> Answer:
    """`fwrite Fk page n tag`: the value at both ends of each page."""
    full, _ = program.files[name]
    first = int(page)
    for number in range(first, first + int(count)):
        value = struct.pack("<Q", int(tag) * 1000 + number % 1000)
        program.host.call(pid, "file_write", full, number * PAGE, value + bytes(PAGE - 16) + value)
    return {"r": int(count)}


def file_read(program: Program, pid: int, name: str, page: str, count: str) -> Answer:
    """`fread Fk page n`."""
    full, _ = program.files[name]
    values = []
    for number in range(int(page), int(page) + int(count)):
        body = program.host.call(pid, "file_read", full, number * PAGE, PAGE)
        if len(body) < PAGE:  # the file ends here
            break
        first, last = struct.unpack_from("<q", body)[0], struct.unpack_from("<q", body, PAGE - 8)[0]
        values.append(first if first == last else -1)
    return {"r": len(values), "v": values}


def fill(program: Program, pid: int, addr: str, count: str) -> Answer:
    """`fill addr n`: which nodes are drawn from, in their order."""
    start, left = address(addr), int(count)
    nodes: Counter[int] = Counter()
    done = 0
    while left:
        part = min(left, _FILL_CHUNK_PAGES)
        marks, _ = program.host.touch(pid, start, part, [0] * part)
        good = marks.count(".")
        done += good
        found = statuses_of(program, pid, pid, [start + i * PAGE for i in range(good)])
        nodes.update(node for node in found if node >= 0)
        if good < part:
            break
        start += part * PAGE
        left -= part
    return {"r": done, "seq": list(nodes), "cnt": list(nodes.values())}


# -- policies ----------------------------------------------------------------------------------------------------------


def mbind(program: Program, pid: int, *args: str) -> Answer:
    """`mbind addr len mode mask maxnode flags`."""
    addr, size, how, mask, maxnode, moving = args
    bits = integer(maxnode)
    result = program.host.call(
        pid, "mbind", address(addr), length(size), words.mode(how), words.mask_for(mask, bits), bits, flags(moving)
    )
    return {"r": result}


def set_mempolicy(program: Program, pid: int, how: str, mask: str, maxnode: str) -> Answer:
    """`set_mempolicy mode mask maxnode`."""
    bits = integer(maxnode)
    return {"r": program.host.call(pid, "set_mempolicy", words.mode(how), words.mask_for(mask, bits), bits)}


def home_node(program: Program, pid: int, addr: str, size: str, node: str, how: str) -> Answer:
    """`home_node addr len node flags`."""
    result = program.host.call(
        pid, "set_mempolicy_home_node", address(addr), length(size), integer(node) % (1 << 64), integer(how)
    )
    return {"r": result}


def get_mempolicy(program: Program, pid: int, *args: str) -> Answer:
    """`get_mempolicy m|null|bad k|null|bad|edge maxnode addr flags`: the kernel writes the mode, then the mask."""
    mode_to, mask_to, maxnode_word, addr, how = args
    maxnode = integer(maxnode_word)
    answer: Answer = {}
    if mask_to == "k":
        answer |= {"mw": 0, "mask": []}
    elif mask_to == "edge":
        answer["mask"] = [_UNWRITTEN]
    mask_bytes = words.mask_bytes(maxnode)
    too_long = mask_to != "null" and mask_bytes > PAGE
    asked = None if mask_to == "null" else min(maxnode, _MASK_BITS_MAX)
    try:
        mode, body = program.host.call(pid, "get_mempolicy", asked, address(addr), flags(how))
    except Refused as refusal:
        return answer | {"r": -1, "e": refusal.errno}
    if mode_to == "bad":
        return answer | {"r": -1, "e": errno.EFAULT}
    if mode_to == "m":
        answer["mode"] = mode
    if too_long:
        return answer | {"r": -1, "e": errno.EINVAL}
    if mask_bytes > {"bad": 0, "edge": words.WORD_BITS // 8}.get(mask_to, mask_bytes):
        return answer | {"r": -1, "e": errno.EFAULT}
    if mask_to != "null":
        answer["mask"] = words.hex_mask((body or b"").ljust(mask_bytes, b"\0")[:mask_bytes])
        if mask_to == "k":
            answer["mw"] = min(mask_bytes // 8, _BUFFER_WORDS)
    return answer


# -- the process itself ------------------------------------------------------------------------------------------------


def set_cpu(program: Program, pid: int, cpu: str) -> Answer:
    """`cpu K`."""
    program.host.call(pid, "set_cpu", int(cpu))
    return {"cpu": int(cpu), "node": program.node_of_cpu[int(cpu)]}


def set_cpuset(program: Program, pid: int, nodes: str) -> Answer:
    """`cpuset LIST`: gives how many CPUs are left to the process right after it."""
    mask = 0
    for part in nodes.split(","):
        low, _, high = part.partition("-")
        for node in range(int(low), int(high or low) + 1):
            mask |= 1 << node
    cpus = program.host.call(pid, "set_cpuset", [mask])
    return {"cpus_after_attach": cpus}


def set_uid(program: Program, pid: int, uid: str) -> Answer:
    """`uid N`."""
    program.host.call(pid, "setuid", int(uid))
    return {}


def drop_capabilities(program: Program, pid: int, names: str) -> Answer:
    """`dropcap NAMES`."""
    program.host.call(pid, "drop_capabilities", [f"CAP_{name.upper()}" for name in names.split(",")])
    return {}


def set_dumpable(program: Program, pid: int, value: str) -> Answer:
    """`dumpable 0|1`."""
    program.host.call(pid, "set_dumpable", int(value))
    return {}


def set_rlimit(program: Program, pid: int, what: str, value: str) -> Answer:
    """`rlimit memlock|as BYTES|inf`."""
    resource = {"memlock": uapi.RLIMIT_MEMLOCK, "as": uapi.RLIMIT_AS}[what]
    program.host.call(pid, "setrlimit", resource, uapi.RLIM_INFINITY if value == "inf" else int(value))
    return {}


def mlockall(program: Program, pid: int, how: str) -> Answer:
    """`mlockall N`."""
    return {"r": program.host.call(pid, "mlockall", integer(how))}


def munlockall(program: Program, pid: int) -> Answer:
    """`munlockall`."""
    return {"r": program.host.call(pid, "munlockall")}


def drain(_program: Program, _pid: int) -> Answer:
    """`drain`: pages are on their lists at once here."""
    return {}


#: Operations of a process by their word.
OPERATIONS: Final[dict[str, Callable[..., Answer]]] = {
    "cpu": set_cpu,
    "cpuset": set_cpuset,
    "drain": drain,
    "dropcap": drop_capabilities,
    "dumpable": set_dumpable,
    "fill": fill,
    "fread": file_read,
    "fwrite": file_write,
    "get_mempolicy": get_mempolicy,
    "home_node": home_node,
    "madvise": madvise,
    "mbind": mbind,
    "migrate_pages": moving.migrate_pages,
    "mlock": _range_call("mlock"),
    "mlock_onfault": mlock_onfault,
    "mlockall": mlockall,
    "mmap": mmap,
    "move_pages": moving.move_pages,
    "mprotect": mprotect,
    "mremap": mremap,
    "munlock": _range_call("munlock"),
    "munlockall": munlockall,
    "munmap": _range_call("munmap"),
    "nm": numa_maps,
    "pageout": pageout,
    "pm": pagemap,
    "rlimit": set_rlimit,
    "set_mempolicy": set_mempolicy,
    "snap": snap,
    "tr": touch_read,
    "tw": touch_write,
    "uid": set_uid,
    "where": where,
}
