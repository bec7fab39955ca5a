"""`python -m numaemu`: the same as the command `numaemu`."""

import sys

from numaemu.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
