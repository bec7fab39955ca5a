"""A kernel daemon that fails before it serves."""

from numaemu_daemon.child import Child


def main(child: Child) -> None:
    raise ValueError(f"no luck today for {child.role}")
