"""Where the sets prepared by TensorFlow Datasets are.

A set lies in `data_dir/name/version` or `data_dir/name/config/version`.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from jaxunlearn.checks import short

_NAME = re.compile(r"(?P<set>[a-z]\w*)(/(?P<config>[\w.+-]+))?(:(?P<version>[\d.*]+))?")


def find(name: str, data_dir: Any) -> Path | None:
    """Where a prepared set is, of its newest version if none is asked for, or None."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    folder = directory(data_dir) / match["set"] / (match["config"] or "")
    pattern = match["version"] or "*"
    versions = _versions(folder, pattern)
    if not versions and match["config"] is None and folder.is_dir():
        inner = {f.name: _versions(f, pattern) for f in folder.iterdir()}
        configs = {config: folders for config, folders in inner.items() if folders}
        if len(configs) > 1:
            msg = (
                f"The data set {name!r} in {folder} is there in several "
                f"configurations, {', '.join(sorted(configs))}; ask for one, such as "
                f"'{match['set']}/{min(configs)}'."
            )
            raise ValueError(msg)
        versions = next(iter(configs.values()), [])
    if not versions:
        return None
    readable = [folder for folder in versions if _format(folder) == "array_record"]
    if readable:
        return readable[-1]
    msg = (
        f"The data set {name!r} in {versions[-1]} is prepared in the format "
        f"{_format(versions[-1])}, and only array_record is read without TensorFlow: "
        f"move that folder away and run `jaxunlearn prepare {name} --data-dir "
        f"{directory(data_dir)}`."
    )
    raise ValueError(msg)


def directory(data_dir: Any) -> Path:
    """Where sets are kept: as given, or as the environment or the custom has it."""
    if data_dir is not None and not isinstance(data_dir, str | os.PathLike):
        msg = f"data_dir must be a path or None; it is {short(data_dir)}."
        raise TypeError(msg)
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(given).expanduser()


def is_name(name: Any) -> bool:
    """Whether a set could be called that."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def read_json(file: Path) -> dict[str, Any]:
    """What TensorFlow Datasets says of a set."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        content = str(error)
    if not isinstance(content, dict):
        msg = (
            f"{file} is damaged ({short(content)}): move its folder away and prepare "
            "the set again."
        )
        raise ValueError(msg)
    return content


def _versions(folder, pattern):
    """Folders of complete sets, oldest version first."""
    infos = folder.glob(f"{pattern}/dataset_info.json")
    versions = [
        f.parent for f in infos if re.fullmatch(r"\d+(\.\d+){2}", f.parent.name)
    ]
    return sorted(versions, key=lambda f: tuple(map(int, f.name.split("."))))


def _format(folder):
    return read_json(folder / "dataset_info.json").get("fileFormat", "tfrecord")
