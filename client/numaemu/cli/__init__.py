"""The command line. A module a command, or a group of them, each with `add_parser`, which sets `run` for its parser.

`--help` must answer at once: nothing here imports numpy or ZeroMQ before a command runs (`import numaemu` does not).
"""
