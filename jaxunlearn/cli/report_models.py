"""The classifiers and the data that a folder is about, read for its report."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxunlearn.cli.saved import SavedClassifier, load_saved
from jaxunlearn.cli.unlearn import OnSaved
from jaxunlearn.report.contents import Contents, Role, SampleSets, ShownModel
from jaxunlearn.tasks import split_by_class, split_by_index

NOT_COMPUTED = (
    "Not computed, as --no-compute asked for: the same command without it computes it "
    "from the saved classifiers."
)


class Listed(NamedTuple):
    """A model that a folder lists: its row, what is known of it, and its file."""

    name: str
    role: Role
    record: Mapping[str, Any] = {}
    file: Path | None = None


class DataFlags(NamedTuple):
    """Where the data are, and how they were read."""

    data_dir: Path | None = None
    dataset: str | None = None
    grey_to_rgb: bool = False


def with_models(
    contents: Contents,
    listed: Sequence[Listed],
    flags: DataFlags | None,
    absent: str,
) -> Contents:
    """The contents with models and data.

    Args:
      contents: without them.
      listed: the models of the folder.
      flags: None if nothing is to be computed.
      absent: the sentence for a folder that keeps no classifiers.

    Raises:
      ValueError: a classifier's file is damaged.
    """
    saved = {
        one.name: load_saved(one.file, "a report")
        for one in listed
        if flags is not None and one.file is not None and one.file.is_file()
    }
    models = [
        ShownModel(
            one.name,
            one.role,
            one.record,
            saved[one.name].classifier if one.name in saved else None,
        )
        for one in listed
    ]
    known = [one for one in models if one.classifier is not None or one.record]
    contents = dataclasses.replace(contents, models=known)
    if flags is None:
        return dataclasses.replace(contents, absent=NOT_COMPUTED)
    made = [o.name for o in listed if o.name in saved and o.role != "original"]
    if not made:
        return dataclasses.replace(contents, absent=absent)
    return _with_data(contents, saved, saved[made[0]], flags)


def _with_data(
    contents: Contents,
    saved: Mapping[str, SavedClassifier],
    told: SavedClassifier,
    flags: DataFlags,
) -> Contents:
    """`told` is a model whose card says what was forgotten."""
    card = told.card
    where = OnSaved(
        checkpoint=told.path,
        dataset=flags.dataset,
        data_dir=flags.data_dir,
        grey_to_rgb=flags.grey_to_rgb,
    )
    named = {
        "num_classes": card.num_classes,
        "class_names": contents.class_names or card.class_names,
    }
    contents = dataclasses.replace(contents, **named)
    classes = contents.forget_classes or card.forgotten
    indices = list(card.forgotten_samples)
    if not classes and not indices:
        msg = f"{told.path} does not say what it has forgotten."
        return dataclasses.replace(contents, absent=msg)
    try:
        train, test = where.load(card, "train", "test")
        if classes:
            forget, retain = split_by_class(train, classes)
        else:
            forget, retain = split_by_index(train, indices)
    except (ValueError, OSError, IndexError) as error:
        msg = (
            f"Not computed, because the data could not be read: {error} --data-dir "
            "says where they are."
        )
        return dataclasses.replace(contents, absent=msg)
    return dataclasses.replace(
        contents,
        samples=SampleSets(train=train, test=test, forget=forget, retain=retain),
        class_names=contents.class_names or train.class_names,
        forget_classes=tuple(classes),
        samplewise=not classes,
    )
