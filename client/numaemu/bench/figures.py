"""All figures, by name. Each boots what it needs and takes it down again; some give more than one line."""

from collections.abc import Callable, Iterator
from typing import Final

from numaemu.bench import at_rest, faults, flood, growth, hits, many, moving, tasks, under_run
from numaemu.bench.rounds import Figure

FIGURES: Final[dict[str, Callable[[], Iterator[Figure]]]] = {
    "hit-read-64": hits.hit_read_64,
    "hit-write-64": hits.hit_write_64,
    "map-read-64": hits.map_read_64,
    "hit-read-16M": hits.hit_read_16m,
    "fault-1": faults.fault_1,
    "populate-64M": faults.populate_64m,
    "swapout-64M": moving.swapout_64m,
    "swapin-64M": moving.swapin_64m,
    "direct-64M": moving.direct_64m,
    "sparse-1T": moving.sparse_1t,
    "reclaim-1.5x": moving.reclaim,
    "fork-64M": tasks.fork_64m,
    "exit-64M": tasks.exit_64m,
    "clients-64": many.clients_64,
    "fault-p99-64": many.fault_p99_64,
    "beside-mbind": many.beside_mbind,
    "flood-p99-client": flood.flood_p99_client,
    "flood-p99-stranger": flood.flood_p99_stranger,
    "boot": at_rest.boot,
    "idle": at_rest.idle,
    "bytes-per-frame": at_rest.bytes_per_frame,
    "run-cpu": under_run.run_cpu,
    "run-getcpu": under_run.run_getcpu,
    "run-sched_getcpu": under_run.run_sched_getcpu,
    "run-get_mempolicy": under_run.run_get_mempolicy,
    "run-files": under_run.run_files,
}

#: Fitted exponents; these write a plot each, if there is a folder for it.
GROWTH: Final = {
    "growth-pages": growth.growth_pages,
    "growth-clients": growth.growth_clients,
    "growth-nodes": growth.growth_nodes,
    "growth-vmas": growth.growth_vmas,
}
