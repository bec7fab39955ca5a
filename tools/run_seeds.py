"""Run many seeds of tests/core/test_interleavings.py, on all processors; a failure says how to replay it.

make seeds                              # seeds 0 to 99,999
make seeds ARGS="--first 5000 --count 100 --jobs 1"
make seeds ARGS="--seed 77"             # one seed again, with its traceback
make seeds ARGS="--on-demand --count 4000"   # with the faults on demand of each seed as well
"""

import argparse
import functools
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no installed package

from tests.core.test_interleavings import faults_of_seed, run_seed

CHUNK = 20
BAR = 40


def failure_of(seed: int, *, on_demand: bool) -> tuple[int, str]:
    """The seed, and the traceback of its failure, or nothing."""
    try:
        run_seed(seed, faults_of_seed(seed) if on_demand else ())
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding
        return seed, traceback.format_exc()
    return seed, ""


def show(done: int, count: int, failed: int, begun_at: float) -> None:
    """The bar: a line that writes over itself on a terminal, else a line now and then."""
    seconds = time.monotonic() - begun_at
    left = seconds / done * (count - done)
    filled = BAR * done // count
    line = f"[{'#' * filled}{'.' * (BAR - filled)}] {done}/{count} seeds, {failed} failed, {left:.0f} s left"
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{line}   ")
    elif done % (CHUNK * 50) == 0 or done == count:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> int:
    """0: every seed went through."""
    parser = argparse.ArgumentParser(description="machines in memory whose parts die, seed by seed")
    parser.add_argument("--seed", type=int, help="run this one only, and let its error out")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--on-demand", action="store_true", help="with the faults on demand of each seed")
    options = parser.parse_args()
    if options.seed is not None:
        run_seed(options.seed, faults_of_seed(options.seed) if options.on_demand else ())
        print(f"seed {options.seed}: nothing was found")
        return 0
    begun_at = time.monotonic()
    failed: list[int] = []
    one = functools.partial(failure_of, on_demand=options.on_demand)
    seeds = range(options.first, options.first + options.count)
    with multiprocessing.Pool(options.jobs) as pool:
        for done, (seed, trouble) in enumerate(pool.imap_unordered(one, seeds, CHUNK), 1):
            if trouble:
                failed.append(seed)
                print(f"\nseed {seed}: {trouble}", flush=True)
            show(done, options.count, len(failed), begun_at)
    print(f"{options.count} seeds from {options.first}, {len(failed)} failed: {sorted(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
