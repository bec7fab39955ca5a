"""A whole run: boots a machine, keeps its crew at work and its killer busy, verifies what is left, and reports."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TextIO

import numpy as np

import numaemu as nm
from numaemu import control, places
from numaemu.stress.area import Area, check
from numaemu.stress.board import THREADS, new_memory
from numaemu.stress.crew import Crew
from numaemu.stress.killer import Killer
from numaemu.stress.plan import FILES, NODES, PAGE_BYTES, SPAN_PAGES
from numaemu.stress.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from numaemu.stress.plan import Plan

    Tell = Callable[[float, dict[str, int]], None]

#: How long they may take to come to an end after the time is over; more for many.
_ENDING_S: Final = 120.0
_ENDING_EACH_S: Final = 1.0
_TELL_S: Final = 0.5
_LAST_LINES: Final = 12
#: Counts of the machine that say how much happened.
_MACHINE: Final = ("pgfault", "pgmajfault", "pswpin", "pswpout", "pageoutrun", "pgmigrate_success", "oom_kill")
_VERDICTS: Final = ("lost", "wrong", "torn")


def run(plan: Plan, tell: Tell) -> Report:
    """One run; `tell` is told now and then which part of it is over, and what was done so far.

    Raises:
        TopologyError: there is no such machine. PeerError, OSError: it could not be started.
    """
    report = Report(plan.clients, plan.seconds, plan.seed, plan.profile, NODES * plan.node_bytes, plan.all_swap_bytes)
    memory = new_memory(plan)
    with nm.boot(NODES, plan.node_bytes, plan.all_swap_bytes, plan.profile, PAGE_BYTES) as machine:
        for file in FILES:
            machine.create_file(file.name, file.pages_each * plan.workers * PAGE_BYTES, file.kind)
        until = time.monotonic() + plan.seconds
        log_path = places.machine_dir(machine.name) / places.LOG  # it goes with the machine, and what it said is wanted
        with log_path.open(errors="replace") as log, Crew(plan, machine.name, memory, until) as crew:
            killer = Killer(plan, machine.name, crew)
            try:
                _work(plan, machine.name, crew, killer, tell)
                _end(plan, crew, report)
                _verify_files(plan, machine, crew, report)
                report.fsck = [*crew.fsck, *machine.fsck()]
                figures = machine.figures("vmstat")
                report.machine = {name: figures[name] for name in _MACHINE if name in figures}
            except nm.MachineGone as gone:
                # What clients say of it is left out: it is the same, over and over.
                report.failed = [str(gone), *_last_words(log)]
                crew.failed.clear()
            counts = crew.board.totals()
            report.lost, report.wrong, report.torn = (counts.pop(name) for name in _VERDICTS)
            report.counts = {**counts, "clients_stopped": crew.pauses}
            report.kills = dict(killer.kills)
            report.found += crew.found
            report.failed += crew.failed
    if report.torn and "client" not in plan.kill:
        report.wrong += report.torn
        report.found.append(f"wrong: {report.torn} pages are torn, and no client was killed")
    return report


def _work(plan: Plan, name: str, crew: Crew, killer: Killer, tell: Tell) -> None:
    """Until the time is over, or all of them fail.

    Raises:
        MachineGone: the machine has ended.
    """
    began = told = time.monotonic()
    while (now := time.monotonic()) < began + plan.seconds and len(crew.failed) <= plan.clients:
        crew.fill_up()
        crew.turn()
        crew.let_go_on()
        crew.pause_one()
        killer.turn()
        if now - told >= _TELL_S:
            told = now
            if not control.is_running(places.machine_dir(name)):
                raise nm.MachineGone(name)
            tell((now - began) / plan.seconds, crew.board.totals())


def _last_words(log: TextIO) -> list[str]:
    """What the machine logged at last that is no daily business: an invariant that did not hold, as a rule."""
    return [line for line in log.read().splitlines() if '"level": "info"' not in line][-_LAST_LINES:]


def _end(plan: Plan, crew: Crew, report: Report) -> None:
    """They verify everything and end by themselves."""
    crew.let_go_on(everybody=True)
    deadline = time.monotonic() + _ENDING_S + _ENDING_EACH_S * plan.clients
    while crew.members and time.monotonic() < deadline:
        crew.turn()
    for member in crew.members:
        doing = ", ".join(f"{op} after {steps} steps" for op, _, steps in crew.board.doing(member.post.process))
        report.failed.append(f"{member.kind} {member.post.serial} did not end: {doing or 'it never began'}")


def _verify_files(plan: Plan, machine: nm.Machine, crew: Crew, report: Report) -> None:
    """All pages of the files, which outlive whoever wrote them; nobody writes them any more."""
    row = crew.board.row(0, THREADS - 1)
    with machine.attach() as task:
        for number, file in enumerate(FILES):
            words = crew.board.files[number]
            who = np.repeat(np.arange(plan.workers, dtype=np.uint64), file.pages_each)
            area = Area(number, 0, words, who)

            def read(first: int, count: int, name: str = file.name) -> bytes:
                return task.file_read(name, first * PAGE_BYTES, count * PAGE_BYTES)

            for first in range(0, len(words), SPAN_PAGES):
                count = min(SPAN_PAGES, len(words) - first)
                check(area, first, count, read, row, report.found.append, still=True)
