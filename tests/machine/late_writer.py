"""A process inside a window of somebody's mm: `late_writer.py MACHINE PID ADDRESS`.

It opens a window by hand, looks the page up, and says open; after a line on stdin it writes the frame that it had
found, closes the window, and says closed.
"""

import sys

import numaemu as nm


def main() -> None:
    """A thread that is slow in the middle of a write."""
    name, pid, addr = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with nm.connect(name) as machine, machine.attach(share_mm=pid) as task:
        task.read(addr, 1)
        window = task.window()
        views, flat = window.walk.views, window.walk.flat(addr >> 12)
        window.counter[0] += 1
        frame = int(views.pte[flat]) >> 12
        views.accessed[flat] = views.dirty[flat] = 1
        sys.stdout.write("open\n")
        sys.stdout.flush()
        sys.stdin.readline()
        views.frame_rows[frame][:4] = list(b"late")
        window.counter[0] += 1
        sys.stdout.write("closed\n")
        sys.stdout.flush()
        sys.stdin.readline()


if __name__ == "__main__":
    main()
