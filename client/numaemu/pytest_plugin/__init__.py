"""The pytest plug-in: the marker `numa` says which machine a test gets, the fixture `numa` gives it.

    @pytest.mark.numa(nodes=4, memory="64M", distances=[[10, 16], [16, 10]])
    def test_placement(numa):
        buffer = numa.task.mmap(1 << 20)
        ...
        numa.assert_on_node(buffer, 1)

pytest imports this module in every run, also of suites that never use it: whatever is heavy is imported in the
fixtures. docs/ci.md has an example.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numaemu.pytest_plugin.machines import Machines
    from numaemu.pytest_plugin.numa import Numa

_MARKER: Final = (
    "numa(nodes=2, memory='256M', swap='128M', profile='linux-6.12', distances=None, topology=None, faults=(), seed=0, "
    "fresh=False): the machine that the fixture numa gives. nodes with memory bytes each and a CPU each; distances: a "
    "row a node; or topology, a TOML file (seen from the test's folder) or a dict of the same shape; faults: what goes "
    "wrong, as for numaemu run --fault; fresh: a machine of its own."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, on the command line and in the ini file."""
    group = parser.getgroup("numa", "machines for the fixture numa (numaemu)")
    told = "TOML file with the machine of tests whose marker numa says neither nodes, memory, distances nor topology"
    group.addoption("--numa-topology", metavar="FILE", help=told)
    parser.addini("numa_topology", f"{told}; seen from the rootdir")
    parser.addini("numa_required", "numa.run fails where the host cannot run programs, and does not skip", type="bool")


def pytest_configure(config: pytest.Config) -> None:
    """The marker is a known one."""
    config.addinivalue_line("markers", _MARKER)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Which machine tests get, if somebody has said so."""
    topology = _topology_told(config)
    return None if topology is None else f"numa: machines of {topology}, unless a test says otherwise"


def _topology_told(config: pytest.Config) -> Path | None:
    """The file of the option, or of the ini file."""
    option: str | None = config.getoption("numa_topology")
    if option:
        return config.invocation_params.dir / option
    ini: str = config.getini("numa_topology")
    return config.rootpath / ini if ini else None


@pytest.fixture(scope="session")
def _numa_machines() -> Iterator[Machines]:
    """The machines of this process: each worker of xdist has a session, and so machines, of its own."""
    from numaemu.pytest_plugin.machines import Machines  # noqa: PLC0415 - only where a test asks for a machine

    machines = Machines()
    try:
        yield machines
    finally:
        machines.close()


@pytest.fixture
def numa(request: pytest.FixtureRequest, _numa_machines: Machines) -> Iterator[Numa]:
    """An emulated NUMA machine: as the marker numa describes it, or of two nodes."""
    from numaemu.pytest_plugin.numa import Numa  # noqa: PLC0415 - only where a test asks for a machine
    from numaemu.pytest_plugin.shape import shape_of  # noqa: PLC0415 - as above
    from numaemu_core.errors import TopologyError  # noqa: PLC0415 - as above

    marker = request.node.get_closest_marker("numa")
    topology, fresh, wrong = None, False, ""
    try:
        topology, fresh = shape_of(marker, _topology_told(request.config), request.path.parent)
    except (OSError, TypeError, ValueError, TopologyError) as error:
        wrong = str(error)
    if topology is None:  # here, so that pytest shows nothing of how we found out
        pytest.fail(f"{'--numa-topology' if marker is None else '@pytest.mark.numa'}: {wrong}", pytrace=False)
    with _numa_machines.lend(topology, fresh=fresh) as (machine, place):
        yield Numa(machine, place, required=request.config.getini("numa_required"))
