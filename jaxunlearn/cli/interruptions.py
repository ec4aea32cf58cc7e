"""Ctrl-C: one interruption, where it is heard, and one sentence."""

import _thread
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

# A file that is half written there leaves a page of errors from other threads.
_NOT_INSIDE = ("/orbax/",)
_PATIENCE = 30.0  # seconds
_AGAIN_AFTER = 0.05


@contextlib.contextmanager
def interruptions() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt` for as long as the `with` statement, once.

    In a callback of the garbage collector, of which JAX has one, and in finalizers
    Python prints what is raised and goes on: there it is raised again a moment later.
    While orbax writes, it is put off.
    """
    ignored = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)  # nohup
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    timers, since = [], []

    def again() -> None:
        timers.append(threading.Timer(_AGAIN_AFTER, _thread.interrupt_main))
        timers[-1].daemon = True
        timers[-1].start()

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number
        since.append(time.monotonic())
        if _is_inside(frame) and since[-1] - since[0] < _PATIENCE:
            again()
        else:
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


def _is_inside(frame: FrameType | None) -> bool:
    """Whether a call of what is not to be interrupted is under way."""
    while frame is not None:
        file = frame.f_code.co_filename.replace("\\", "/")
        if any(part in file for part in _NOT_INSIDE):
            return True
        frame = frame.f_back
    return False
