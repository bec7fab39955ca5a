"""numaemu stress: many client processes at once, every byte verified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from numaemu.cli.options import add_json, examples, print_json
from numaemu.cli.progress import Bar

if TYPE_CHECKING:
    import argparse

    from numaemu.stress.plan import Plan

_CLIENTS_MAX: Final = 200
#: A week.
_SECONDS_MAX: Final = 604800


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser = subparsers.add_parser(
        "stress",
        help="many client processes that write, move, fork and verify every byte",
        description="Boots a machine of its own and runs client processes on it: workers that write and verify tagged "
        "pages while they move them, companions that share the memory of a worker, children that take over its forks. "
        "They use more memory than there is, and swap takes the rest. With --kill, processes are killed at random, and "
        "new ones verify what survived. Ends with fsck. Exit status 0 only if nothing was lost or wrong, no client "
        "failed or hung, and fsck finds nothing. A seed names the operations that are drawn, not their order among "
        "processes.",
        **examples(
            "numaemu stress\n"
            "numaemu stress --clients 64 --seconds 60 --kill client,node,swap\n"
            "numaemu stress --profile linux-6.12 --seed 7 --json\n"
            "numaemu stress --swap 0"
        ),
    )
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="client processes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="K", help="names the run (default: %(default)s)")
    parser.add_argument("--kill", default="", metavar="WHAT,...", help="kill some of: client, node, swap, daemon")
    parser.add_argument("--profile", default="swap-v3", metavar="P", help="the kernel (default: %(default)s)")
    parser.add_argument("--memory", metavar="SIZE", help="memory of each of the 4 nodes (default: too little)")
    parser.add_argument(
        "--swap",
        metavar="SIZE",
        help="the swap area; 0: memory runs out (default: enough)",
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run and report; 0 if the machine is sound."""
    from numaemu.stress.run import run as stress  # noqa: PLC0415 - --help answers without the library

    plan = _plan(args)
    with Bar() as bar:

        def tell(part: float, counts: dict[str, int]) -> None:
            verified, written = (counts[name] / bar.seconds for name in ("reads_verified", "pages_written"))
            bad = f"lost {counts['lost']}, wrong {counts['wrong']}"
            bar.draw(part, f"a second: {verified:,.0f} pages verified, {written:,.0f} written; {bad}")

        report = stress(plan, tell)
    if args.json:
        print_json(report.as_dict())
    else:
        print("\n".join(report.lines()))
    return 0 if report.sound else 1


def _plan(args: argparse.Namespace) -> Plan:
    """What was asked for, checked."""
    from numaemu.stress.plan import KILLABLE, Plan  # noqa: PLC0415 - as in run
    from numaemu_core.profiles import profile_named  # noqa: PLC0415 - as in run
    from numaemu_core.sizes import parse_size  # noqa: PLC0415 - as in run

    if not 1 <= args.clients <= _CLIENTS_MAX:
        raise ValueError(f"--clients: expected 1 to {_CLIENTS_MAX}, got {args.clients}")
    if not 0 < args.seconds <= _SECONDS_MAX:
        raise ValueError(f"--seconds: expected more than 0 and at most {_SECONDS_MAX}, got {args.seconds}")
    kill = tuple(dict.fromkeys(word for word in args.kill.split(",") if word))
    for word in kill:
        if word not in KILLABLE:
            raise ValueError(f"--kill: expected some of {', '.join(KILLABLE)}, got {word!r}")
    memory = None if args.memory is None else parse_size(args.memory, "--memory")
    swap = None if args.swap is None else parse_size(args.swap, "--swap")
    profile = profile_named(args.profile).name
    return Plan(args.clients, args.seconds, args.seed, profile, kill, memory, swap)
