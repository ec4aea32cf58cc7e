"""One process for each side, which does one thing at a time when it is told to."""

import multiprocessing
import os
import time
import traceback
from pathlib import Path
from typing import Any

from . import memory
from .options import Options


class Worker:
    """A side in a process of its own.

    Args:
      side: "jax", "torch" or "torch_compiled".
      options: of the command line.
      folder: where the inputs are.
      cuda: whether it uses a GPU.
    """

    def __init__(self, side: str, options: Options, folder: Path, cuda: bool):
        context = multiprocessing.get_context("spawn")
        self.side = side
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, side, options, folder, cuda)
        self._process = context.Process(target=_serve, args=arguments)
        self._process.start()
        theirs.close()
        self.start_seconds = self._answer()

    def ask(self, what: str, *arguments: Any) -> Any:
        """What the side's function of this name returns.

        Raises:
          RuntimeError: it failed, or the process ended.
        """
        self._pipe.send((what, arguments))
        return self._answer()

    def _answer(self):
        try:
            fine, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            message = f"The process of {self.side} ended with {code}."
            raise RuntimeError(message) from None
        if not fine:
            raise RuntimeError(f"The process of {self.side} failed:\n{answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(pipe, side, options, folder, cuda):
    try:
        start = time.perf_counter()
        served = _Side(side, options, folder, cuda)
        pipe.send((True, time.perf_counter() - start))
        while True:
            what, arguments = pipe.recv()
            pipe.send((True, getattr(served, what)(*arguments)))
    except EOFError:
        return  # the parent has closed its end
    except Exception:
        pipe.send((False, traceback.format_exc()))


class _Side:
    """What a worker can be asked."""

    def __init__(self, side, options, folder, cuda):
        # Before either is imported. One card, of which JAX is not to take all memory.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if side == "jax":
            os.environ["JAX_PLATFORMS"] = "cuda" if cuda else "cpu"
            from .library import Library

            self._side = Library(options, folder)
        else:
            from .pytorch import PyTorch

            self._side = PyTorch(
                options,
                folder,
                cores=len(os.sched_getaffinity(0)),
                device="cuda" if cuda else "cpu",
                compiled=side == "torch_compiled",
            )
        self._cuda = cuda

    def stages(self) -> list[str]:
        """What can be timed."""
        return list(self._side.stages)

    def call(self, stage: str) -> dict[str, float]:
        """Seconds and peak bytes of one call."""
        side = self._side
        side.before(stage)
        side.wait()
        side.reset_peak()
        before = memory.reset_peak()
        start = time.perf_counter()
        side.stages[stage]()
        side.wait()
        seconds = time.perf_counter() - start
        peak = side.device_peak()
        if peak is None:
            peak = memory.resident("VmHWM") - before
        return {"seconds": seconds, "peak_bytes": peak}

    def __getattr__(self, name):
        return getattr(self._side, name)
