"""Calls that come while another one is served: a thread receives them, and they are served in their order.

A signal interrupts a call that nobody has received: it is EINTR then, unless the handler has SA_RESTART, and no call of
memory policy knows that. Once it is received only a fatal signal does.

Source: seccomp_do_user_notification in kernel/seccomp.c (5.19).
"""

import contextlib
import errno
import os
import select
import signal
import threading
from collections import deque
from typing import Final, Self

from numaemu_host import sigmask
from numaemu_run.seccomp import Listener, Notification

#: The thread wakes up for one call, and takes what there is. Calls that find nobody busy are not to wake it up, nor to
#: pay for its epoll, which costs each of them 3 % even while it is disarmed: it knows the listener only when in use.
_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT
#: No registration more: of memory, or of those that a user may have (fs.epoll.max_user_watches).
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.ENOMEM})


class Receiver:
    """As a context manager: calls are received meanwhile, and by nobody else. Not to be nested."""

    def __init__(self, listener: Listener) -> None:
        """Begins its thread. OSError: EMFILE, ENFILE: no descriptor is left; EAGAIN: no thread."""
        self._listener = listener
        #: What was received, and is to be served before anything else is received.
        self.calls: deque[Notification] = deque()
        self._guard = threading.Lock()
        self._is_on = False
        self._call = select.poll()
        self._call.register(listener.fd, select.POLLIN)
        with contextlib.ExitStack() as stack:
            self._arrivals = stack.enter_context(select.epoll())
            self._closing = os.eventfd(0, os.EFD_CLOEXEC)
            stack.callback(os.close, self._closing)
            self._arrivals.register(self._closing, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
            with sigmask.held(signal.valid_signals()):  # those are for others
                try:
                    self._thread.start()
                except RuntimeError as error:
                    raise OSError(errno.EAGAIN, "no thread can be started") from error
            self._descriptors = stack.pop_all()

    def __enter__(self) -> Self:
        """Where the host has no room for it, no call is received meanwhile."""
        with self._guard:  # the thread may still be about to arm what an earlier use has registered
            try:
                self._arrivals.register(self._listener.fd, _ONCE)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
            else:
                self._is_on = True
        return self

    def __exit__(self, *_error: object) -> None:
        if self._is_on:
            self._is_on = False  # before we have the guard: the thread is to let go of it
            with self._guard:
                self._arrivals.unregister(self._listener.fd)

    def has_call(self) -> bool:
        """Is there one to be received? To be asked by one thread at a time."""
        return any(event & select.POLLIN for _, event in self._call.poll(0))

    def _run(self) -> None:
        """The thread: until all is over, or nobody is left who could call."""
        while not any(fd == self._closing or event & select.EPOLLHUP for fd, event in self._arrivals.poll()):
            with self._guard:
                while self._is_on and self.has_call():
                    call = self._listener.receive()
                    if call is not None:
                        self.calls.append(call)
                if self._is_on:
                    self._arrivals.modify(self._listener.fd, _ONCE)

    def close(self) -> None:
        """Nobody is received any more. To be done once."""
        os.eventfd_write(self._closing, 1)
        self._thread.join()
        self._descriptors.close()
