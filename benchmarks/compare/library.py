"""The side of jaxunlearn; it also makes what both sides start from."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

import jaxunlearn as ju
from jaxunlearn import parallel
from jaxunlearn.descent.loop import minibatches
from jaxunlearn.models.files import versions
from jaxunlearn.models.torch_names import namings
from jaxunlearn.models.torch_weights import to_torch
from jaxunlearn.training import Recipe

from . import inputs as given
from .inputs import Inputs
from .options import Options

KEY = 1


class Library:
    """What is timed, by stage.

    Args:
      options: of the command line.
      folder: where the inputs are; written if they are not there.
    """

    def __init__(self, options: Options, folder: Path):
        self.options = options
        self.model = ju.models.create(
            options.model, num_classes=given.CLASSES, **options.model_options
        )
        if not (folder / "inputs.npz").exists():
            images, labels = _images(options)
            Inputs.of(images, labels, options.batch).save(folder)
        self.inputs = Inputs.load(folder)
        few = self.inputs.first(8)
        self.variables = random_variables(self.model, few.retained)
        pixels = ju.Preprocess(given.MEAN, given.STD)
        self.classifier = jax.device_put(
            ju.freeze(self.model, self.variables, preprocess=pixels)
        )
        self.targets = self._targets(self.inputs.forgotten)
        moments = ju.second_moments(self.classifier, few.retained)
        self.protected = ju.subspaces(moments, energy=given.ENERGY)
        self.free = ju.subspaces(moments, rank=0)
        self.prior = ju.ImagePrior(**given.PRIOR)
        self.moments: Any = None
        self._write(folder)

    def _write(self, folder: Path) -> None:
        """What the other sides read."""
        np.savez(folder / "weights.npz", **to_torch(self.model, self.variables))
        bases = self._by_layer(self.protected, lambda s: np.asarray(s.basis[0]))
        np.savez(folder / "bases.npz", **bases)
        options, forgotten = self.options, len(self.inputs.forgotten)
        batch, steps = min(options.batch, forgotten), options.steps
        whole, request = jax.random.split(jax.random.key(KEY))[1], options.request_steps
        few, small_steps = len(self.inputs.small().forgotten), given.AGREEMENT[1]
        orders = {
            "steps": order(jax.random.key(KEY), forgotten, batch, steps),
            "request": order(whole, forgotten, batch, request),
            "agreement": order(whole, few, min(given.AGREEMENT[0], few), small_steps),
        }
        np.savez(folder / "orders.npz", targets=self.targets, **orders)

    def _targets(self, images):
        logits = self.classifier(jnp.asarray(images))
        return np.asarray(ju.nearest_retained_labels(logits, [given.FORGOTTEN]))

    @property
    def stages(self) -> dict[str, Callable[[], Any]]:
        """What is called, by name; the results are ready when it returns."""
        return {
            "statistics": self._statistics,
            "subspaces": self._subspaces,
            "inversion": self._inversion,
            "unlearning": functools.partial(self._unlearning, self.optimizer),
            "unprojected": functools.partial(self._unlearning, self.unprotected),
            "projection": self._projection,
            "training": self._training,
            "unsc": self._unsc,
            "covarnav": self._covarnav,
        }

    def before(self, stage: str) -> None:
        """What a stage starts from and is not part of it."""
        if stage == "subspaces" and self.moments is None:
            self._statistics()

    def _class_moments(self, some: Inputs, batch: int):
        return ju.class_moments(
            self.classifier,
            some.retained,
            some.retained_labels,
            num_classes=given.CLASSES,
            batch_size=batch,
        )

    def _statistics(self):
        self.moments = self._class_moments(self.inputs, self.options.batch)
        jax.block_until_ready(self.moments)

    def _subspaces(self):
        jax.block_until_ready(
            merged(self.moments, np.unique(self.inputs.retained_labels))
        )

    def _inversion(self):
        ju.invert(
            self.classifier,
            self.inputs.start_labels,
            image_shape=self.inputs.start.shape[1:],
            key=jax.random.key(KEY),
            prior=self.prior,
            steps=self.options.steps,
            optimizer=ju.ImageAdam(given.INVERSION_RATE),
            start=self.inputs.start,
            batch_size=len(self.inputs.start),
        )

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the steps."""
        projection = ju.project_to_null_space(self.protected)
        return optax.chain(optax.sgd(given.RATE), projection)

    @functools.cached_property
    def unprotected(self) -> optax.GradientTransformation:
        """The same without protection."""
        projection = ju.project_to_null_space(self.free)
        return optax.chain(optax.sgd(given.RATE), projection)

    def _unlearning(self, optimizer):
        result = ju.unlearn(
            self.classifier,
            self.inputs.forgotten,
            self.targets,
            optimizer,
            steps=self.options.steps,
            batch_size=min(self.options.batch, len(self.inputs.forgotten)),
            key=jax.random.key(KEY),
        )
        jax.block_until_ready(result.classifier)

    @functools.cached_property
    def _project(self):
        transform = ju.project_to_null_space(self.protected)
        state = transform.init(self.classifier.params)
        update = jax.jit(lambda updates, state: transform.update(updates, state)[0])
        return lambda updates: update(updates, state)

    def _projection(self):
        updates = self.classifier.params
        for _ in range(given.PROJECTIONS):
            updates = self._project(updates)
        jax.block_until_ready(updates)

    def _training(self):
        options = self.options
        images, labels = self.inputs.training(options.steps * options.batch)
        fitted = ju.training.fit(
            self.model,
            ju.Data(images, labels),
            recipe=Recipe(
                epochs=1,
                batch_size=options.batch,
                learning_rate=given.RATE,
                warmup_epochs=0,
                schedule="constant",
            ),
            key=jax.random.key(KEY),
            preprocess=self.classifier.preprocess,
        )
        jax.block_until_ready(fitted)

    def _task(self, some: Inputs, retain: bool) -> ju.Task:
        labels = np.full(len(some.forgotten), given.FORGOTTEN, np.int32)
        return ju.Task(
            ju.Data(some.forgotten, labels),
            ju.Data(some.retained, some.retained_labels) if retain else None,
            [given.FORGOTTEN],
            num_classes=given.CLASSES,
        )

    def _request(self, some: Inputs, steps: int, batch: int) -> ju.Result:
        method = ju.UNSC(
            energy=given.ENERGY,
            merge_energy=given.ENERGY,
            steps=steps,
            batch_size=batch,
            learning_rate=given.RATE,
        )
        task = self._task(some, retain=True)
        result = method(self.classifier, task, key=jax.random.key(KEY))
        return jax.block_until_ready(result.classifier)

    def _unsc(self):
        self._request(self.inputs, self.options.request_steps, self.options.batch)

    def _covarnav(self):
        options = self.options
        method = ju.CovarNav(
            images_per_class=given.per_class(options.batch),
            inversion_steps=options.steps,
            inversion_batch_size=options.batch,
            inversion_rate=given.INVERSION_RATE,
            prior=self.prior,
            energy=given.ENERGY,
            steps=options.request_steps,
            batch_size=options.batch,
            learning_rate=given.RATE,
        )
        task = self._task(self.inputs, retain=False)
        result = method(self.classifier, task, key=jax.random.key(KEY))
        jax.block_until_ready(result.classifier)

    def agreement(self) -> dict[str, np.ndarray]:
        """Moments, bases and logits of a small request, in full precision."""
        few = self.inputs.small()
        batch, steps = given.AGREEMENT
        with jax.default_matmul_precision("highest"):
            moments = self._class_moments(few, self.options.batch)
            after = self._request(few, steps, batch)
            seen = jnp.asarray(np.concatenate([few.forgotten, few.retained]))
            found = {"before": self.classifier(seen), "after": after(seen)}
        kept, by_layer = np.unique(few.retained_labels), self._by_layer
        grams = by_layer(moments, lambda m: np.asarray(m.gram)[kept, 0], axes=2)
        bases = by_layer(merged(moments, kept), lambda s: np.asarray(s.basis[0]))
        found |= {f"moments/{name}": gram for name, gram in grams.items()}
        found |= {f"bases/{name}": basis for name, basis in bases.items()}
        return {name: np.asarray(value) for name, value in found.items()}

    def layers(self) -> list[dict[str, Any]]:
        """The shapes behind the count of floating-point operations, in order."""
        records = ju.layer_table(self.classifier, self.inputs.retained[:1])
        records = {r.path.removesuffix("/kernel"): r for r in records if r.d}
        ranks = self._by_layer(self.protected, lambda s: s.basis.shape[-1], axes=0)
        return [
            {
                "layer": theirs,
                "rows": records[ours].rows,
                "d": records[ours].d,
                "out": records[ours].out,
                "rank": ranks[theirs],
            }
            for ours, theirs in self._names.items()
        ]

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        """Our layers that have inputs, and PyTorch's names of them, in order."""
        naming = next(iter(namings(self.model).values()))
        params = flatten_dict(self.classifier.params, sep="/")
        return {o: t for o, t in naming.items() if f"{o}/kernel" in params}

    def _by_layer(self, tree, value, axes: int = 1) -> dict[str, Any]:
        """Values of records by PyTorch's names, `axes` of fan-in in its order."""
        params = flatten_dict(self.classifier.params, sep="/")
        flat = flatten_dict(tree, sep="/")
        found = {}
        for ours, theirs in self._names.items():
            array = value(flat[f"{ours}/kernel"])
            rows = torch_order(params[f"{ours}/kernel"].shape)
            if axes == 1:
                array = array[rows]
            elif axes == 2:
                array = array[..., rows, :][..., rows]
            found[theirs] = array
        return found

    def describe(self) -> dict[str, Any]:
        """The device, and versions."""
        return {
            "device": parallel.device_kind(),
            "platform": jax.default_backend(),
            "versions": versions(),
        }

    def device_peak(self) -> int | None:
        """The allocator's peak, where there is one; it cannot be reset."""
        stats = jax.local_devices()[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use")

    def reset_peak(self) -> None:
        """JAX has no such function."""

    def wait(self) -> None:
        """Stages wait for their results themselves."""


def merged(moments, classes: np.ndarray) -> Any:
    """The subspaces of these classes, merged, as UNSC does it."""
    trees = [
        ju.subspaces(ju.sum_classes(moments, [c]), energy=given.ENERGY)
        for c in classes.tolist()
    ]
    return ju.merge_subspaces(trees, energy=given.ENERGY)


def order(key, size: int, batch: int, steps: int) -> np.ndarray:
    """The minibatches that `unlearn` draws from this key."""
    return minibatches(jax.random.split(key)[0], size, batch)(0, steps)


def torch_order(shape: tuple[int, ...]) -> np.ndarray:
    """Where PyTorch's fan-in, channels first, is found in a kernel `[..., in, out]`."""
    places = np.arange(np.prod(shape[:-1])).reshape(shape[:-1])
    return np.moveaxis(places, -1, 0).ravel()


def random_variables(model, images: np.ndarray) -> dict[str, Any]:
    """Random weights, and the running statistics that they have on these images.

    With other statistics the features of all images would soon be alike, and ranks much
    smaller than those of trained networks.
    """
    pixels = ju.Preprocess(given.MEAN, given.STD)(images)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)
    draw = np.random.default_rng(0)

    def drawn(path, shape):
        if path.startswith("batch_stats/"):
            return np.zeros(shape)
        if path.endswith("/kernel"):
            return draw.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
        return draw.normal(float(path.endswith("/scale")), 0.2, shape)

    leaves = {
        path: jnp.asarray(drawn(path, leaf.shape), jnp.float32)
        for path, leaf in flatten_dict(shapes, sep="/").items()
    }
    variables = unflatten_dict(leaves, sep="/")
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    _, changed = apply(variables, pixels)
    # From zero to a tenth of the batch's: the momentum of our networks is .9.
    statistics = jax.tree.map(lambda x: 10 * x, changed["batch_stats"])
    return {**variables, "batch_stats": statistics}


def _images(options: Options) -> tuple[np.ndarray, np.ndarray]:
    if options.data_dir is None:
        return given.random_images(options.images, options.side)
    data = ju.datasets.load("cifar10", "train", data_dir=options.data_dir)
    rows = [
        np.flatnonzero(data.labels == c)[: options.images] for c in range(given.CLASSES)
    ]
    chosen = np.concatenate(rows)
    return data.images[chosen], data.labels[chosen]
