"""What a classifier still knows of each class."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxunlearn import parallel
from jaxunlearn.checks import check_count, check_labels
from jaxunlearn.classifier.classifier import Classifier, check_classifier
from jaxunlearn.classifier.images import check_images
from jaxunlearn.classifier.independence import num_classes
from jaxunlearn.metrics.accuracy import class_accuracy, confusion_matrix
from jaxunlearn.nullspace.trees import check_concrete
from jaxunlearn.tasks import Data, check_classes, check_data


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Accuracies in percent. The target of each is the retrained model's value.

    Attributes:
      per_class: of each class; NaN for a class without samples.
      retained: unweighted mean over the retained classes that have samples (Acc_r).
      forgotten: unweighted mean over the forgotten ones (Acc_f); NaN without any.
      retained_weighted: over the samples of the retained classes instead.
      forgotten_weighted: over the samples of the forgotten classes.
      confusion: how many samples of class `i` (row) are taken for class `j` (column).
      forget_classes: which classes count as forgotten.
      class_names: one for each class, where the data have them.
    """

    per_class: Float[np.ndarray, " k"]
    retained: float
    forgotten: float
    retained_weighted: float
    forgotten_weighted: float
    confusion: Int[np.ndarray, "k k"]
    forget_classes: tuple[int, ...]
    class_names: tuple[str, ...] | None = None

    def __str__(self):
        lines = [
            f"retained  {self.retained:6.2f} % (over samples "
            f"{self.retained_weighted:.2f} %)"
        ]
        if self.forget_classes:
            classes = (class_label(c, self.class_names) for c in self.forget_classes)
            lines.append(
                f"forgotten {self.forgotten:6.2f} % (over samples "
                f"{self.forgotten_weighted:.2f} %), classes: {', '.join(classes)}"
            )
        labels = [class_label(c, self.class_names) for c in range(len(self.per_class))]
        if any(":" in label for label in labels):
            width = max(map(len, labels))
            each = zip(labels, self.per_class, strict=True)
            cells = [f"{label:<{width}} {value:5.1f}" for label, value in each]
            columns = max(1, 80 // (width + 9))
            rows = (cells[i : i + columns] for i in range(0, len(cells), columns))
            return "\n".join((*lines, "accuracy of class", *map("   ".join, rows)))
        for start in range(0, len(self.per_class), 10):
            row = self.per_class[start : start + 10]
            numbers = range(start, start + len(row))
            lines.append("class     " + "".join(f"{c:7d}" for c in numbers))
            lines.append("accuracy  " + "".join(f"{a:7.1f}" for a in row))
        return "\n".join(lines)


def class_label(number: int, class_names: Sequence[str] | None) -> str:
    """A class by its number and, where it has another name, by that.

    >>> class_label(2, ["ant", "wasp", "bee"]), class_label(2, None)
    ('2: bee', '2')
    """
    named = class_names is not None and number < len(class_names)
    name = class_names[number] if named else str(number)
    return name if name == str(number) else f"{number}: {name}"


def evaluate(
    classifier: Classifier,
    data: Data,
    forget_classes: Iterable,
    *,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    transform: parallel.Transform = "shard_map",
) -> Evaluation:
    """Accuracy on each class, and its means over retained and forgotten classes.

        Acc_r = mean_{c retained} acc_c,   Acc_f = mean_{c forgotten} acc_c

    Both are means over *classes*, as in arXiv 2404.13588; the means over samples stand
    beside them, and differ where classes are of unequal size. Judge either by the value
    of a model retrained without the forget set, not by 0 or 100 %.

    Args:
      classifier: the one to judge, in inference mode.
      data: as many samples as you like; all of them count.
      forget_classes: `()` if samples rather than classes were forgotten.
      batch_size: images at a time.
      mesh: as for `logits`.
      transform: as for `logits`.

    Raises:
      TypeError: a forget class is not an integer.
      ValueError: a forget class or a label does not exist.
      FloatingPointError: logits are not a number.

    >>> import flax.linen as nn
    >>> import jax.numpy as jnp
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> kernel = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)}
    >>> classifier = ju.freeze(model, {"params": {"layers_1": kernel}})
    >>> data = Data(np.array([1.0, -1.0, 1.0]).reshape(3, 1, 1, 1), [0, 1, 1])
    >>> print(evaluate(classifier, data, [1]))
    retained  100.00 % (over samples 100.00 %)
    forgotten  50.00 % (over samples 50.00 %), classes: 1
    class           0      1
    accuracy    100.0   50.0
    """
    check_classifier(classifier)
    check_data("data", data)
    k = num_classes(classifier, data.images)
    classes = check_classes(forget_classes, k)
    hint = f"The classifier has {k} logits."
    check_labels("labels of data", data.labels, len(data), k, hint)
    options = {"batch_size": batch_size, "mesh": mesh, "transform": transform}
    outputs = logits(classifier, data.images, **options)
    bad = np.isnan(outputs).any(axis=1)
    if bad.any():
        msg = (
            f"The classifier's logits are not a number for {bad.sum()} of {len(data)} "
            "images: it has diverged, and has no accuracy."
        )
        raise FloatingPointError(msg)
    confusion = confusion_matrix(data.labels, outputs.argmax(axis=1), k)
    per_class = class_accuracy(confusion)
    forgotten = np.isin(np.arange(k), classes)
    return Evaluation(
        per_class,
        retained=_mean(per_class[~forgotten]),
        forgotten=_mean(per_class[forgotten]),
        retained_weighted=_sample_mean(confusion, ~forgotten),
        forgotten_weighted=_sample_mean(confusion, forgotten),
        confusion=confusion,
        forget_classes=classes,
        class_names=data.class_names,
    )


def logits(
    classifier: Classifier,
    images: Array | np.ndarray,
    *,
    batch_size: int = 256,
    mesh: Mesh | None = None,
    transform: parallel.Transform = "shard_map",
) -> Float[np.ndarray, "n k"]:
    """Logits of any number of images, batch by batch, on the host.

    The last batch is filled up, so that one program serves all; fewer images than
    `batch_size` are filled up to a power of two.

    Args:
      classifier: in inference mode.
      images: `[n, h, w, c]`; under several processes the same in each.
      batch_size: images at a time, over all devices (rounded up to a multiple of them).
      mesh: a one-axis mesh over whose devices each batch is cut. None: on a GPU or TPU
        all of this process's devices, on a CPU one.
      transform: what runs the network on each of several devices, "shard_map" or
        "pmap".

    Raises:
      ValueError: `batch_size` is not positive, images are not `[n, h, w, c]`, there is
        no such transform, or the mesh has several axes.

    >>> import flax.linen as nn
    >>> import jax.numpy as jnp
    >>> import jaxunlearn as ju
    >>> model = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(2)])
    >>> classifier = ju.freeze(model, model.init(jax.random.key(0), jnp.ones((1, 4))))
    >>> logits(classifier, np.ones((5, 2, 2, 1), np.float32), batch_size=2).shape
    (5, 2)
    """
    check_count("batch_size", batch_size)
    check_classifier(classifier)
    given = (classifier, images)
    check_concrete("an argument of evaluate", given, "counting correct samples")
    images = check_images(images, classifier.preprocess)
    n = images.shape[0]
    if n == 0:
        return np.zeros((0, num_classes(classifier, images)), np.float32)
    batch_size = min(batch_size, 1 << (n - 1).bit_length())
    parallel.check_transform(transform, mesh)
    mesh = parallel.mesh_for_rows(mesh)
    if mesh is not None:
        batch_size = -(-batch_size // mesh.size) * mesh.size
        classifier = parallel.place_whole(classifier, mesh)
        images = np.asarray(images)
    batches = []
    for start in range(0, n, batch_size):
        # The last image again, rather than zeros: nothing can go wrong in it alone.
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)
        if mesh is None:
            batches.append(_logits(classifier, images[rows]))
        else:
            cut = parallel.place_gathered(images, rows[None], mesh)
            batches.append(_shares(classifier, cut, mesh, transform))
    return np.concatenate(parallel.fetch(batches, mesh))[:n]


@jax.jit
def _logits(classifier, images):
    return classifier(images)


@functools.partial(jax.jit, static_argnames=("mesh", "transform"))
def _shares(classifier, images, mesh, transform):
    run = parallel.map_shards(_logits, mesh, (None, 0), 0, transform)
    return run(classifier, images[0])


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _sample_mean(confusion, classes):
    total = confusion[classes].sum()
    correct = np.diag(confusion)[classes].sum()
    return float(100 * correct / total) if total else float("nan")
