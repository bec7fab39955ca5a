"""A kernel daemon that serves once and cannot recover."""

import importlib

from numaemu_daemon.child import Child


def main(child: Child) -> None:
    if child.restarted:
        raise ValueError("no second time")
    importlib.import_module("standin_kernel").main(child)
