"""How the times grow with pages, clients, nodes and VMAs: fitted exponents, and a plot of each."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

import numaemu as nm
from numaemu.bench.crowd import crowd
from numaemu.bench.echo import echoing
from numaemu.bench.machines import PAGE, booted, seconds
from numaemu.bench.rounds import ROUNDS, Figure, Reach, alone

_MOVE: Final = nm.MPOL_MF_MOVE | nm.MPOL_MF_STRICT
_FAULTS: Final = 64
_PAGES: Final = [4**n for n in range(10)]  # 1 … 262,144
_CLIENTS: Final = [2**n for n in range(8)]
_NODES: Final = [1, 2, 4, 8, 16, 32, 64]
_VMAS: Final = [1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000]


@dataclass(frozen=True)
class Curve:
    """Medians of several rounds, by how many there were."""

    what: str
    counts: list[int]
    microseconds: list[float]

    def exponent(self, begin: int = 1) -> float:
        """The slope of the straight line through the logarithms, of the points from `begin` on."""
        x = [math.log(count) for count in self.counts if count >= begin]
        y = [math.log(us) for count, us in zip(self.counts, self.microseconds, strict=True) if count >= begin]
        return float(np.polyfit(x, y, 1)[0])


def _curve(what: str, counts: list[int], measure: Callable[[int], float]) -> Curve:
    """Medians of rounds of `measure`, which gives microseconds."""
    return Curve(what, counts, [statistics.median(measure(count) for _ in range(ROUNDS)) for count in counts])


def growth_pages(folder: Path | None) -> Iterator[Figure]:
    """Touching and moving 1 to 262,144 pages."""
    with booted(memory="1088M", swap="1088M") as machine, machine.attach() as task:
        nodes = itertools.cycle((1, 2, 3, 0))

        def fresh(pages: int) -> float:
            with task.mmap(pages * PAGE) as buf:
                return seconds(lambda: buf.touch(write=True)) * 1e6

        curves = [_curve("first write", _PAGES, fresh)]
        with task.mmap(_PAGES[-1] * PAGE) as buf:

            def moved(pages: int) -> float:
                buf.touch(0, pages * PAGE, write=True)
                target = {next(nodes)}
                return seconds(lambda: task.mbind(buf.start, pages * PAGE, nm.MPOL_BIND, target, _MOVE)) * 1e6

            curves.append(_curve("mbind(MOVE) to swap", _PAGES, moved))
    with booted(memory="1088M", swap="16M", profile="linux-6.1") as machine, machine.attach() as task:
        buf = task.mmap(_PAGES[-1] * PAGE)
        buf.touch(write=True)

        def direct(pages: int) -> float:
            target = {next(nodes)}
            return seconds(lambda: task.mbind(buf.start, pages * PAGE, nm.MPOL_BIND, target, _MOVE)) * 1e6

        curves.append(_curve("mbind(MOVE) to a node", _PAGES, direct))
    yield from _figures("growth-pages", "pages", curves, 1.1, folder)


def growth_clients(folder: Path | None) -> Iterator[Figure]:
    """The time of a fault with 1 to 128 clients that fault at once, all of their faults together."""
    with booted(memory="64M") as machine, echoing() as endpoint, crowd(machine, endpoint, _CLIENTS[-1]) as clients:
        curve = _curve("one fault of all", _CLIENTS, lambda count: 1e6 / clients.work("faults", count, 0.5)[0])
    yield from _figures("growth-clients", "clients", [curve], 0.3, folder)


def growth_nodes(folder: Path | None) -> Iterator[Figure]:
    """A fault, and moving 1,024 pages, on machines of 1 to 64 nodes."""
    faults: list[float] = []
    moves: list[float] = []
    for nodes in _NODES:
        with booted(memory="8M", swap="32M", nodes=nodes) as machine, machine.attach() as task:
            faults.append(statistics.median(_a_fault_us(task) for _ in range(ROUNDS)))
            buf = task.mmap(1024 * PAGE)
            targets = itertools.cycle({nodes - 1, 0})
            moves.append(statistics.median(_a_move_us(task, buf, next(targets)) for _ in range(ROUNDS)))
    curves = [Curve("one fault", _NODES, faults), Curve("mbind(MOVE) of 1,024 pages", _NODES, moves)]
    yield from _figures("growth-nodes", "nodes", curves, 1.1, folder)


def growth_vmas(folder: Path | None) -> Iterator[Figure]:
    """A fault in an address space of 1 to 10,000 VMAs."""
    with booted() as machine, machine.attach() as task:
        there = 0

        def with_so_many(count: int) -> float:
            nonlocal there
            while there < count - 1:  # two neighbours with different rights do not merge
                task.mmap(PAGE, prot=nm.PROT_READ if there % 2 else nm.PROT_READ | nm.PROT_WRITE)
                there += 1
            return _a_fault_us(task)

        curve = _curve("one fault", _VMAS, with_so_many)
    yield from _figures("growth-vmas", "VMAs", [curve], 0.3, folder)


def _a_fault_us(task: nm.Task) -> float:
    with task.mmap(_FAULTS * PAGE) as buf:
        began = time.perf_counter()
        for at in range(_FAULTS):
            buf.write(at * PAGE, b"x")
        return (time.perf_counter() - began) / _FAULTS * 1e6


def _a_move_us(task: nm.Task, buf: nm.Mapping, node: int) -> float:
    buf.touch(write=True)
    return seconds(lambda: task.mbind(buf.start, buf.length, nm.MPOL_BIND, {node}, nm.MPOL_MF_MOVE)) * 1e6


def _figures(name: str, of: str, curves: list[Curve], bound: float, folder: Path | None) -> Iterator[Figure]:
    """The exponent of each curve, and one plot of all."""
    for number, curve in enumerate(curves):
        suffix = "" if not number else "-" + curve.what.replace("(MOVE)", "").replace(" ", "-")
        reach = Reach(at_most=True, bound=bound, of="")
        yield alone(f"{name}{suffix}", "exponent", [curve.exponent()], reach)
    if folder is not None:
        _plot(folder / f"{name}.png", of, curves)


def _plot(path: Path, of: str, curves: list[Curve]) -> None:
    """Time against number, both logarithmic, with the fitted exponents."""
    from matplotlib.figure import Figure as Sheet  # noqa: PLC0415 - an extra, for plots only

    sheet = Sheet(figsize=(7, 4.5), layout="constrained")
    axes = sheet.add_subplot(xlabel=of, ylabel="microseconds", xscale="log", yscale="log")
    for curve in curves:
        label = f"{curve.what}: exponent {curve.exponent():.2f}"
        axes.plot(curve.counts, curve.microseconds, marker="o", label=label)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(path, dpi=120)
