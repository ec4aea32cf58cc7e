"""Features of the layer before the head, in two dimensions."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.layer_features import features
from jaxunlearn.report.contents import Contents, MissingError
from jaxunlearn.report.limits import Limits
from jaxunlearn.report.outputs import affordable, part

# Points of all maps together: a page stays small.
_POINTS = 5000
_FEWEST = 8
# Of t-SNE, half of them of early exaggeration; so few points are settled by then.
_ITERATIONS = 500


class Maps(NamedTuple):
    """One map a model, of the same samples.

    Attributes:
      points: by model, `[n, 2]`.
      gone: which of the samples are forgotten.
      labels: their classes.
      taken: by model, the classes that it takes them for.
      how: what makes two numbers of a feature, in words.
    """

    points: Mapping[str, np.ndarray]
    gone: np.ndarray
    labels: np.ndarray
    taken: Mapping[str, np.ndarray]
    how: str


def feature_maps(contents: Contents, limits: Limits) -> Maps:
    """Of test samples; of forgotten samples and test samples where samples went."""
    models = contents.loaded
    data = contents.data
    most = affordable(contents, data.test.images, limits.points)
    most = max(_FEWEST, min(most, _POINTS // len(models)))
    if contents.samplewise:
        gone, kept = data.forget, data.test
    else:
        rows = np.isin(data.test.labels, contents.forget_classes)
        gone, kept = data.test.take(rows), data.test.take(~rows)
    gone, kept = part(gone, most // 4), part(kept, most - min(len(gone), most // 4))
    if not len(gone) or len(gone) + len(kept) < _FEWEST:
        msg = (
            f"There are {len(gone)} forgotten and {len(kept)} other samples, too few "
            "for a map: --points takes more."
        )
        raise MissingError(msg)
    images = np.concatenate([np.asarray(gone.images), np.asarray(kept.images)])
    function, how = _WAYS[limits.map]
    return Maps(
        {m.name: function(features(m.classifier, images)) for m in models},
        np.arange(len(images)) < len(gone),
        np.concatenate([gone.labels, kept.labels]),
        {m.name: logits(m.classifier, images).argmax(axis=1) for m in models},
        how,
    )


def _tsne(rows: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # which scikit-learn needs itself

    start = _pca(rows)
    if not start.std():
        return start
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # As scikit-learn scales what it starts from itself.
    start = (start / start[:, 0].std() * 1e-4).astype(np.float32)
    given = {"perplexity": perplexity, "max_iter": _ITERATIONS, "random_state": 0}
    found = TSNE(init=start, **given)
    # Threads that wait for each other on a busy machine take minutes; one adds up in
    # the same order each time.
    with threadpool_limits(1):
        return found.fit_transform(np.asarray(rows, np.float32))


def _pca(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    centred = rows - rows.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    found = np.zeros((len(rows), 2))
    count = min(2, len(sizes))
    found[:, :count] = left[:, :count] * sizes[:count]
    # A sign of its own choosing is turned the same way on every machine.
    signs = np.sign(found[np.abs(found).argmax(axis=0), [0, 1]])
    return found * np.where(signs == 0, 1, signs)


_WAYS = {
    "tsne": (_tsne, "t-SNE, which keeps neighbours; distances mean little"),
    "pca": (_pca, "the two principal components of each model's own features"),
}
