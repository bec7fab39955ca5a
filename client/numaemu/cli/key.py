"""numaemu key: makes a pair of keys for machines on TCP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numaemu.cli.options import examples

if TYPE_CHECKING:
    import argparse


def add_parser(subparsers: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Register the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "key",
        help="make a pair of keys for machines on TCP",
        description="Writes a pair of CURVE keys into a new file that only you can read, and prints the public one, "
        "for `numaemu up --authorize` of a machine that is to admit you. With --public, prints that of a file.",
        **examples(
            "numaemu key ~/.numaemu-key\n"
            'numaemu up --listen tcp://127.0.0.1:5555 --authorize "$(numaemu key --public alice.key)"'
        ),
    )
    parser.add_argument("file", metavar="FILE", help="the file; it must not be there yet")
    parser.add_argument("--public", action="store_true", help="only print the public key of a file that is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make it, or read it."""
    from numaemu_host.keyfile import read_keys  # noqa: PLC0415 - --help answers without it

    if args.public:
        print(read_keys(args.file)[0])
        return 0
    from numaemu.tcp import make_keys  # noqa: PLC0415 - as above

    print(make_keys(args.file))
    return 0
