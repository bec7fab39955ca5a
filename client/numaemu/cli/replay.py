"""numaemu replay: recorded programs of system calls, compared call by call with what a real kernel answered."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from numaemu.replay.runner import Outcome, Sums

_PROGRESS_EVERY: Final = 20

_EPILOG: Final = """\
examples:
  numaemu replay recordings/6.1-quad-focused.jsonl.gz
  numaemu replay --expected docs/conformance-expected.toml recordings/*.jsonl.gz
  numaemu replay --show --profile linux-6.12 one.jsonl
  numaemu replay --results ours.jsonl unanswered.jsonl

exit status: 0 if every program that is not excused agrees and every machine is sound, else 1.
"""


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "replay",
        help="run recorded programs of calls and compare with what a real kernel answered",
        description="Runs recorded programs of system calls, each on a fresh machine of the recorded shape, and "
        "compares every answer with the recorded one. Programs without answers are run, too (see --results).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings: .jsonl or .jsonl.gz, a program a line")
    parser.add_argument("--profile", metavar="P", help="the profile (default: that of each recording's kernel)")
    parser.add_argument("--results", metavar="OUT", help="write each program with our answers to this file")
    parser.add_argument("--expected", metavar="FILE", help="programs that are excused, with reasons (TOML)")
    parser.add_argument("--show", action="store_true", help="print every call that differs, with both answers")
    parser.add_argument("--summary", action="store_true", help="print how many programs first differ in what")
    parser.add_argument("--id", metavar="ID", action="append", help="only programs of this id")
    parser.add_argument(
        "--processes", action="store_true", help="on machines of real processes (default: in memory, the core alone)"
    )
    parser.add_argument("--fsck", action="store_true", help="check every invariant of each machine, too (slow)")
    parser.add_argument("--jobs", type=int, metavar="N", help="programs at a time (default: one a processor)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run, compare, print."""
    from numaemu.replay import runner  # noqa: PLC0415 - --help answers without numpy
    from numaemu.replay.records import read_records, row_with  # noqa: PLC0415 - as above

    records = [record for path in args.files for record in read_records(path)]
    if args.id:
        records = [record for record in records if record.id in args.id]
    excuses = runner.read_excuses(args.expected) if args.expected else {}
    jobs = args.jobs or (1 if args.processes else runner.default_jobs())
    options = runner.Options(args.profile, args.processes, args.fsck, jobs)
    with contextlib.ExitStack() as stack:
        results = stack.enter_context(Path(args.results).open("w", encoding="utf-8")) if args.results else None
        progress = _progress(len(records))

        def each(outcome: Outcome) -> None:
            progress()
            if results is not None:
                results.write(row_with(outcome.record, outcome.answers) + "\n")
            for line in outcome.violations:
                print(f"{outcome.record.file} {outcome.record.id}: fsck: {line}")
            if args.show:
                _show(outcome)

        sums = runner.collect(runner.run_all(records, options), excuses, each)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    _report(sums, summary=args.summary)
    return 0 if sums.programs_agreeing == sums.programs and not sums.violations else 1


def _progress(total: int) -> Callable[[], None]:
    """A line on a terminal that says how far the run is."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty() and (done % _PROGRESS_EVERY == 0 or done == total):
            width = 30
            bar = "█" * (done * width // total)
            print(f"\r{bar:<{width}} {done} of {total} programs\x1b[K", end="", file=sys.stderr, flush=True)

    return step


def _show(outcome: Outcome) -> None:
    """Each call that differs, with what came before it."""
    record = outcome.record
    for call in outcome.differing:
        print(f"{record.file} {record.id} call {call}: {record.ops[call]}")
        print(f"    recorded {record.results[call]}")
        print(f"    ours     {outcome.answers[call]}")


def _report(sums: Sums, *, summary: bool) -> None:
    if summary:
        for (word, fields), count in sums.kinds.most_common():
            print(f"{count:6} {word:<14} {fields:<12} {sums.examples[word, fields]}")
    for file, name, call, reason in sums.excused:
        print(f"excused: {file} {name} call {call}: {reason}")
    for file, name in sums.needless:
        print(f"excused without need: {file} {name} agrees")
    print(sums.line())
