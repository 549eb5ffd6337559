# SPDX-License-Identifier: Apache-2.0
"""Command-line arguments and signals, handled the same way in all programs of this package."""

import _thread
import contextlib
import queue
import signal
import sys
import threading

from zeroflow_ros import exit_status_at_start


def split_ros_args(args: list[str]) -> tuple[list[str], list[str]]:
    """Return (arguments of the program, arguments of ROS, which are those from --ros-args to --)."""
    if '--ros-args' not in args:
        return args, []
    start = args.index('--ros-args')
    end = args.index('--', start) if '--' in args[start:] else len(args)
    return args[:start] + args[end + 1 :], args[start:end]


def interrupt_normally() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, in a program of this package that handles it from here on.

    While the program imports its modules, Ctrl-C ends it at once (`zeroflow_ros/__init__.py`).
    """
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and exit_status_at_start(sys.orig_argv) is not None:
        repeat_lost_interrupts()
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def repeat_lost_interrupts() -> None:
    """Repeat a KeyboardInterrupt that is raised within a callback of compiled code, which no exception can leave."""
    sys.unraisablehook = _interrupt_again


def forget_interrupt() -> None:
    """Let the exit status of a program be its own after a KeyboardInterrupt that it has handled.

    CPython remembers one inside exec(), which imports and numba use, and would end the process by SIGINT. The next
    exec() of a text makes it forget.
    """
    exec('')


def _interrupt_again(unraisable) -> None:
    if unraisable.exc_type is KeyboardInterrupt:
        _thread.interrupt_main()
    else:
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def stop_on_signals():
    """Yield a threading.Event that SIGINT and SIGTERM set, instead of an exception in the middle of a call.

    Outside the main thread nothing sets it.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # A handler must not call set() itself: it may have interrupted a wait() that holds the event's lock.
    arrived = queue.SimpleQueue()
    relay = threading.Thread(target=lambda: arrived.get() and stop.set(), name='signals', daemon=True)
    relay.start()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: arrived.put(number)) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        arrived.put(0)
        relay.join()
