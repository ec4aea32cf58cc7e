"""Metrics of a training in a file that grows, one JSON object a line."""

import json
import os
from pathlib import Path
from typing import Any

from jaxunlearn.serialization import to_dict


class MetricLog:
    """Appends records to a file, each flushed; callable, for `log` of `training.fit`.

    Where there are records already, the first new one cuts off those of its own step
    and of later ones, so that a training that was killed and resumed has each step
    once. A line that a kill has torn goes at once.

    Args:
      path: the file; its folder must be there.
      tensorboard: a folder for TensorBoard's event files, which are written anew by a
        training that goes on, or None.

    Raises:
      ValueError: TensorBoard files are asked for, and tensorboardX is not installed.
      FileNotFoundError: there is no such folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "metrics.jsonl"
    ...     for steps in ((0, 1, 2), (1, 2)):
    ...         with MetricLog(path) as log:
    ...             for step in steps:
    ...                 log({"step": step})
    ...     print(path.read_text().split())
    ['{"step":0}', '{"step":1}', '{"step":2}']
    """

    def __init__(self, path: str | Path, tensorboard: str | Path | None = None):
        self._path, self._board_folder = Path(path), tensorboard
        self._board = None
        if tensorboard is not None:
            check_tensorboard()
        if not self._path.parent.is_dir():
            msg = f"There is no folder {self._path.parent} to write metrics into."
            raise FileNotFoundError(msg)
        # Opened for appending, a file is written at its end wherever that is.
        self._file = self._path.open("a", encoding="utf-8")
        self._started = False
        self._cut(None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __call__(self, record: dict[str, Any]) -> None:
        """Append a record with its `step`; what is not finite becomes null."""
        if not self._started:
            self._cut(record["step"])
            self._start_board()
            self._started = True
        line = json.dumps(to_dict(record), allow_nan=False, separators=(",", ":"))
        self._file.write(line + "\n")
        self._file.flush()
        self._show(record)

    def _start_board(self):
        """Write event files anew: a kill loses some of what was on its way there."""
        if self._board_folder is None:
            return
        for old in Path(self._board_folder).glob("events.out.tfevents.*"):
            old.unlink()
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(self._board_folder))
        for record in read_metrics(self._path):
            self._show(record)

    def _show(self, record):
        if self._board is None:
            return
        for name, value in record.items():
            if name not in ("step", "epoch") and value is not None:
                self._board.add_scalar(name, value, record["step"])

    def _cut(self, step: int | None):
        """Remove what follows the last whole line, or is of this step or later."""
        kept = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or not _is_before(line, step):
                    break
                kept += len(line)
        if kept < self._path.stat().st_size:
            os.truncate(self._path, kept)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    r"""The records that a `MetricLog` has written; a torn last line is left out.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "metrics.jsonl"
    ...     _ = path.write_text('{"step": 0}\n{"st')
    ...     read_metrics(path)
    [{'step': 0}]
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def check_tensorboard() -> None:
    """Refuse to write TensorBoard files without the package for it.

    Raises:
      ValueError: tensorboardX is not installed.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        msg = (
            "TensorBoard files need the package tensorboardX: "
            "pip install 'jaxunlearn[tensorboard]', or leave them out."
        )
        raise ValueError(msg) from error


def _is_before(line, step):
    try:
        return step is None or json.loads(line)["step"] < step
    except (ValueError, KeyError, TypeError):
        return False
