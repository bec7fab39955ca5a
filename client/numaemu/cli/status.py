"""numaemu status and numaemu ls: how each process of a machine is, and which machines there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numaemu.cli.options import add_json, add_machine, examples, machine_name, print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register both commands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "status",
        help="how each process of a machine is",
        description="Says how each process of a machine is. With --locks also, for each class of locks: how often one "
        "was taken, was not to be had at once, and had a dead holder; how long it was waited for and held, in sum and "
        "at most. The page locks of a task count as one, from its first to its last.",
        **examples(
            "numaemu status\nnumaemu status --json | jq '.processes[] | select(.restarts > 0)'\n"
            "numaemu status --locks --json | jq '.locks[\"mmap_sem.write\"]'"
        ),
    )
    add_machine(parser)
    add_json(parser)
    parser.add_argument("--locks", action="store_true", help="also what was counted of the locks since boot")
    parser.set_defaults(run=run_status)
    parser = subparsers.add_parser(
        "ls",
        help="list machines",
        description="Lists the machines of this user. `dead`: killed, `down` clears it away.",
    )
    add_json(parser)
    parser.set_defaults(run=run_ls)


def run_status(args: argparse.Namespace) -> int:
    """Print what init says."""
    from numaemu import control, places  # noqa: PLC0415 - --help answers without it

    found = control.status(places.machine_dir(machine_name(args)))
    if args.locks:
        found["locks"] = _locks(machine_name(args))
    if args.json:
        print_json(found)
        return 0
    print(f"machine {found['machine']}, boot id {found['boot_id']}, generation {found['generation']}")
    if "faults" in found:
        from numaemu_core.faults_on_demand import one_line  # noqa: PLC0415 - --help answers without it

        print(one_line(found["faults"], found["seed"]))
    rows: list[tuple[str, ...]] = [("ROLE", "NODE", "PID", "STATE", "RESTARTS", "MEMORY", "DONE")]
    rows += [_process_row(process) for process in found["processes"]]
    print(table(rows, left_columns={0, 3, 6}), end="")
    if args.locks:
        print()
        print(lock_table(found["locks"]), end="")
    return 0


def _locks(name: str) -> dict[str, dict[str, float]]:
    """What the kernel daemon has counted of each class of locks."""
    import numaemu as nm  # noqa: PLC0415 - --help answers without it

    with nm.connect(name) as machine:
        found: dict[str, dict[str, float]] = machine.status()["locks"]
    return found


def lock_table(locks: dict[str, dict[str, float]]) -> str:
    """A line for each class of locks, in their order; times in milliseconds."""
    rows: list[tuple[str, ...]] = [
        ("LOCK", "TAKEN", "CONTENDED", "RECOVERIES", "WAITED ms", "AT MOST", "HELD ms", "AT MOST")
    ]
    for name, stat in locks.items():
        counts = (f"{stat[key]:.0f}" for key in ("taken", "contended", "recoveries"))
        times = (f"{stat[key] * 1e3:.3f}" for key in ("wait_s", "wait_max_s", "hold_s", "hold_max_s"))
        rows.append((name, *counts, *times))
    return table(rows, left_columns={0})


def _process_row(process: dict[str, Any]) -> tuple[str, ...]:
    node, memory_kb = process.get("node"), process.get("memory_kb")
    counts = {**(process.get("done") or {}), "times killed while stopped": process.get("killed_stopped", 0)}
    done = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return (
        str(process["role"]),
        "-" if node is None else str(node),
        str(process["pid"]),
        str(process["state"]),
        str(process["restarts"]),
        "-" if memory_kb is None else f"{memory_kb} kB",
        done,
    )


def run_ls(args: argparse.Namespace) -> int:
    """Print a line a machine."""
    from numaemu import places  # noqa: PLC0415 - --help answers without it

    machines = [_machine(name) for name in places.machine_names()]
    if args.json:
        print_json(machines)
        return 0
    rows: list[tuple[str, ...]] = [("NAME", "STATE", "PID", "PROCESSES", "DIRECTORY")]
    rows += [tuple("-" if value is None else str(value) for value in machine.values()) for machine in machines]
    if machines:
        print(table(rows, left_columns={0, 1, 4}), end="")
    return 0


def _machine(name: str) -> dict[str, Any]:
    from numaemu import control, places  # noqa: PLC0415 - --help answers without it

    place = places.runtime_dir() / name
    state, pid, count = "dead", None, None
    try:
        processes = control.status(place)["processes"]
        state, count = "running", len(processes)
        pid = next((process["pid"] for process in processes if process["role"] == "init"), None)
    except ConnectionRefusedError:
        pass
    except OSError:  # it is there, and does not answer as it should
        state = "silent"
    return {"name": name, "state": state, "pid": pid, "processes": count, "directory": str(place)}


def table(rows: Sequence[tuple[str, ...]], left_columns: set[int]) -> str:
    """Rows in columns two blanks apart, numbers to the right; a line a row, without blanks at its end."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)
