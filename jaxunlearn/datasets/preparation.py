"""Preparing an image set for reading: the one step that needs TensorFlow."""

import contextlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from jaxunlearn.checks import short
from jaxunlearn.datasets import location, tfds

_NEEDED = ("tensorflow", "importlib_resources")


def prepare(name: Any, data_dir: str | os.PathLike | None = None) -> Path:
    """Download a set with TensorFlow Datasets and write it in the array_record format.

    Args:
      name: `name`, `name/config`, either with `:version` behind it.
      data_dir: where prepared sets are kept, as in `load`.

    Returns:
      The folder of the set. If it is there already, nothing is done.

    Raises:
      ImportError: TensorFlow is not there.
      ValueError: there is no such set, it is not one of labelled images, or it is there
        in another format.
      OSError: it cannot be downloaded (TensorFlow Datasets tries for some minutes)
        or written. Nothing half-written is left; finished downloads are.
    """
    if not location.is_name(name):
        msg = (
            f"{short(name)} is no name of a set: that is name, name/config or "
            "name:version."
        )
        raise ValueError(msg)
    folder = location.find(name, data_dir)
    if folder is not None:
        return folder
    missing = [p for p in _NEEDED if importlib.util.find_spec(p) is None]
    if missing:
        msg = (
            f"Preparing {name!r} needs {' and '.join(missing)}; reading it will not: "
            "pip install tensorflow importlib_resources"
        )
        raise ImportError(msg)
    where = location.directory(data_dir)
    builder = _builder(name, where)
    try:
        _download(name, builder)
    finally:
        _tidy(builder, where)
    return Path(builder.data_dir)


def _builder(name, where):
    """TensorFlow Datasets' own code for a set, once it is known to be of use."""
    import tensorflow_datasets
    from google.protobuf import json_format

    try:
        builder = tensorflow_datasets.builder(
            name, data_dir=str(where), file_format="array_record"
        )
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        msg = (
            f"TensorFlow Datasets has no set {name!r}: its sets are listed at "
            "https://www.tensorflow.org/datasets/catalog/overview"
        )
        raise ValueError(msg) from error
    except (AssertionError, ValueError) as error:  # version or configuration
        whole = str(error)
        reason = (whole.partition('}": ')[2] or whole).splitlines()[0]
        msg = f"TensorFlow Datasets cannot prepare {name!r}: {reason}"
        raise ValueError(msg) from error
    features = json_format.MessageToDict(builder.info.features.to_proto())
    tfds.check_features(name, features)
    return builder


def _download(name, builder):
    import tensorflow_datasets

    # Google's copies of prepared sets are in another format.
    config = tensorflow_datasets.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # whatever the code of some set raises
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        msg = (
            f"The data set {name!r} could not be prepared in {builder.data_dir} "
            f"({type(error).__name__}: {reason}). Is there a network, is the disk "
            "full, or does this set have to be downloaded by hand?"
        )
        raise OSError(msg) from error


def _tidy(builder, where):
    """Remove downloads that were broken off, and folders in which there is nothing."""
    # The set itself is written to a folder that TensorFlow Datasets removes if it
    # fails. Complete downloads stay for the next attempt.
    downloads = where / "downloads"
    for part in downloads.glob(f"{builder.name}/*.tmp.*"):
        shutil.rmtree(part, ignore_errors=True)
    folders = [downloads / builder.name, downloads / "extracted", downloads]
    inner = Path(builder.data_dir).parents
    folders += [folder for folder in inner if where in folder.parents]
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, or never made
            folder.rmdir()
