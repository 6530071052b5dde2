"""Signals that tell this process to end, heard beside the exceptions that they raise.

Such an exception comes up wherever the main thread happens to be. In a finalizer or in a library's
callback it goes no further, and what was told to end goes on. The handlers stay as they are:
Prefect cancels a run in its own way only while SIGTERM's is its own.
"""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def ending_signals(heard: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Calls `heard`, from a thread, for each SIGTERM and SIGINT of this process. Outside of the
    main thread, where Python hears no signals, and where somebody else listens already (an event
    loop), nothing is heard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    here, there = socket.socketpair()
    there.setblocking(False)  # a signal waits for nobody
    before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before)

    def listen() -> None:
        while numbers := here.recv(64):
            for number in numbers:
                if number in ENDING:
                    heard(signal.Signals(number))

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        if before == -1:
            signal.set_wakeup_fd(-1)
        there.close()
        thread.join()
        here.close()
