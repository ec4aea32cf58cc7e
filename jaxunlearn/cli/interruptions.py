"""Ctrl-C: one interruption, where it is heard, and one sentence."""

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_AGAIN_AFTER = 0.05


@contextlib.contextmanager
def interruptions() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt` for as long as the `with` statement, once.

    In a callback of the garbage collector, of which JAX has one, and in finalizers
    Python prints what is raised and goes on: there it is raised again a moment later.
    """
    ignored = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)  # nohup
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    timers = []

    def again() -> None:
        timers.append(threading.Timer(_AGAIN_AFTER, _thread.interrupt_main))
        timers[-1].daemon = True
        timers[-1].start()

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    def swallowed(unraisable) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            again()
        else:
            hook(unraisable)

    handler, hook = signal.signal(signal.SIGINT, interrupt), sys.unraisablehook
    sys.unraisablehook = swallowed
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, handler)
