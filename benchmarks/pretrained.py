"""Forget a class of a classifier that others trained: ResNet-8 for CIFAR-10.

    PYTHONPATH=. python benchmarks/pretrained.py WEIGHTS FOLDER --data-dir DIR

Its training is not at hand, so every stand-in for it is measured: CovarNav's proxies
beside true images, the certificate on images that no method read, and audits beside
networks of the same architecture that are trained here without the class. Each piece is
a file in FOLDER, made once; `pretrained_report.py` makes tables of the lines printed.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
from pretrained_network import PIXELS, ResNet8, classifier_of
from safetensors.numpy import load_file

import jaxunlearn as ju
from jaxunlearn import datasets, methods, training
from jaxunlearn.metrics import feature_layers, relative_change, relearn_steps
from jaxunlearn.metrics.evaluation import logits
from jaxunlearn.metrics.proxies import proxy_quality
from jaxunlearn.metrics.relearning import Relearning
from jaxunlearn.metrics.verdict import audit_all
from jaxunlearn.models.files import versions
from jaxunlearn.parallel import device_kind
from jaxunlearn.serialization import to_dict, write_json

AUDITS = ("accuracy", "distribution", "probe", "class-mean", "neighbour")
RELEARNING = Relearning(batch_size=64, cap=20)


def recipe_of(own: argparse.Namespace) -> training.Recipe:
    """How the architecture is trained here: a rate that rises and falls, few passes."""
    how = {"batch_size": 32, "learning_rate": 0.05, "flip": True}
    return training.Recipe(epochs=own.epochs, warmup_epochs=0.2 * own.epochs, **how)


def methods_of(own: argparse.Namespace) -> dict[str, tuple]:
    """By name: the method, and the rates among which validation data choose first."""
    how = {"steps": own.steps, "batch_size": 64}
    proxies = how | {
        "images_per_class": own.images_per_class,
        "inversion_steps": own.inversion_steps,
    }
    small, large = (0.03, 0.1, 0.3), (0.3, 1.0, 3.0)
    distilled = int((own.budget - 1 / 3) * own.images[0] * 0.9) // 64
    found = {
        "mask-head": methods.MaskHead(),
        "covarnav": (ju.CovarNav(**proxies), small),
        "unsc, ridge": (ju.UNSC(**how, projection="ridge"), large),
        "unprojected": (ju.Unprojected(**how), (0.001, 0.003, 0.01)),
        "covarnav, forget start": (ju.CovarNav(**proxies, start="forget"), small),
        "layerwise-teacher": methods.LayerwiseTeacher(),
        "reset-and-distill": methods.ResetAndDistill(budget=own.budget),
        "unsc": (ju.UNSC(**how), large),
        "last block, distilled": methods.LastLayersReset(
            layers=4, distil=True, steps=distilled
        ),
        "from scratch, distilled": methods.ResetAndDistill(budget=own.budget, layers=0),
    }
    return {n: m if isinstance(m, tuple) else (m, None) for n, m in found.items()}


# Beside the proxies of both starts, and what no method unlearns with here.
SOURCES = {"covarnav": {}, "covarnav, forget start": {}}
SOURCES |= {
    "uniform noise": {"stand_in": "uniform"},
    "augmented forget images": {"stand_in": "augmented"},
    "true images": {"stand_in": "retained"},
}


class Pieces:
    """Records and classifiers in a folder, each made once."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        """Whether this record has been made."""
        return (self.folder / f"{name}.json").exists()

    def record(self, name: str, make) -> dict:
        """What `make` said, the first time, and the seconds that it took."""
        path = self.folder / f"{name}.json"
        if not self.has(name):
            begun = time.perf_counter()
            record = make()
            seconds = {"seconds": time.perf_counter() - begun}
            write_json(path, seconds | to_dict(record))
        return json.loads(path.read_text())

    def classifier(self, name: str, make) -> ju.Classifier:
        """What `make` returned, the first time."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            ju.save(path, make())
        return ju.load(path, ResNet8())


def some(data: ju.Data, count: int) -> ju.Data:
    """So many samples, evenly spread."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
    return ju.Data(data.images[rows], data.labels[rows])


class Study:
    """The classifier, one class to forget, and what is measured of every method."""

    def __init__(self, own, pieces, splits, original, forget: int):
        self.own, self.pieces, self.splits = own, pieces, splits
        self.original, self.classes = original, [forget]
        self.train, self.validation, self.test = (
            some(data, count)
            for data, count in zip(splits.values(), own.images, strict=True)
        )
        self.key = jax.random.key(own.seed)
        self.task = ju.Task(
            *ju.split_by_class(self.train, self.classes),
            self.classes,
            num_classes=10,
            validation=self.validation,
        )
        self.unread = ju.split_by_class(self.test, self.classes)[1].images
        self.moments = ju.second_moments(original, self.unread)
        self.known = ju.evaluate(original, self.test, self.classes).forgotten
        self.before = logits(original, self.unread)

    def trained(self, seed: int, *, whole: bool = False) -> ju.Classifier:
        """The architecture, trained here on all images but the class's, or on all."""
        data, title = self.splits["train"], "with-all"
        if not whole:
            title = f"without-{self.classes[0]}"
            data = ju.split_by_class(data, self.classes)[1]

        def make():
            place = self.pieces.folder / f"training-{title}-{seed}"
            return training.fit(
                *(ResNet8(), data),
                recipe=recipe_of(self.own),
                key=jax.random.key(seed),
                preprocess=PIXELS,
                checkpoint_dir=place,
                resume=True,
            )

        return self.pieces.classifier(f"trained-{title}-{seed}", make)

    def unlearned(self, name: str) -> tuple[ju.Classifier, dict]:
        """One method's classifier, and how it came about."""
        title, results = f"forget-{self.classes[0]}-{name}", []
        method, grid = methods_of(self.own)[name]

        def make():
            given = {"key": self.key, "validation": self.validation, "grid": grid}
            asked = (self.original, self.train, [self.classes])
            results.extend(ju.forget(method, *asked, **given))
            return self.pieces.classifier(title, lambda: results[0].classifier)

        def told():
            make()
            trace = results[0].trace
            names = ("tuned", "trials", "at_edge", "caution", "samples_read")
            record = {name: getattr(trace, name) for name in names}
            if trace.proxies is not None:
                record["proxies"] = self.quality(trace.proxies)
                shown = ju.second_moments(self.original, trace.proxies.images)
                after = results[0].classifier.params
                record["drift_on_proxies"] = self.drift(after, shown)
            return record

        record = self.pieces.record(title, told)
        return self.pieces.classifier(title, make), record

    def quality(self, proxies: ju.Data) -> dict:
        """The energy of unread retained images that a tenth of directions captures."""
        rule = {"protected_fraction": 0.1}
        found = proxy_quality(self.original, proxies, self.moments, **rule)
        layers = feature_layers(self.original, proxies.images)
        energies = {name: found.captured_energy[name] for name in layers}
        later = [energies[name] for name in layers[1:]]
        told = {"mean": float(np.mean(later)), "least": min(later)}
        told |= {"images": len(proxies), "accuracy": found.accuracy}
        return told | {"energies": energies}

    def source(self, name: str) -> dict:
        """The same of one way to come by proxies."""
        if not SOURCES[name]:
            return self.unlearned(name)[1]["proxies"]
        method = methods_of(self.own)["covarnav"][0].replace(**SOURCES[name])
        title = f"forget-{self.classes[0]}-proxies-{name}"
        given = (self.original, self.task)
        return self.pieces.record(
            title, lambda: self.quality(method.proxies(*given, key=self.key))
        )

    def drift(self, params, moments=None) -> dict:
        """By layer, the relative change of its outputs."""
        moments = self.moments if moments is None else moments
        drifts = ju.drift(moments, self.original.params, params)
        leaves, _ = jax.tree_util.tree_flatten_with_path(drifts)
        return {path[0].key: float(value) for path, value in leaves}

    def judged(self, name: str, classifier: ju.Classifier) -> dict:
        """Accuracies, and how far outputs moved."""

        def make():
            accuracy = ju.evaluate(classifier, self.test, self.classes)
            after = logits(classifier, self.unread)
            return {
                "retained": accuracy.retained,
                "forgotten": accuracy.forgotten,
                "change": float(relative_change(self.before, after)),
                "drift": self.drift(classifier.params),
            }

        return self.pieces.record(f"judged-{self.classes[0]}-{name}", make)

    def taught(self, name: str, classifier: ju.Classifier) -> dict:
        """Minibatches until the class is back."""

        def make():
            again = relearn_steps(
                *(classifier, self.train, some(self.test, 500), self.classes),
                target=0.95 * self.known,
                protocol=RELEARNING,
                key=self.key,
            )
            return {"relearn": str(again)}

        return self.pieces.record(f"taught-{self.classes[0]}-{name}", make)

    def audits(self, models: dict, twins: list) -> dict:
        """Of every model the rows, and the verdict; those not made yet together."""
        titles = {name: f"audits-{self.classes[0]}-{name}" for name in models}
        new = {n: m for n, m in models.items() if not self.pieces.has(titles[n])}
        made = {}
        if new:
            made = audit_all(
                new,
                original=self.original,
                retrained=twins,
                train=self.train,
                test=self.test,
                forget_classes=self.classes,
                key=self.key,
                which=AUDITS,
            )
        return {
            name: self.pieces.record(title, lambda name=name: _told(made[name]))
            for name, title in titles.items()
        }


def _told(audit: ju.Audit) -> dict:
    """Of each row the values of this model and the retrained ones, and the verdict."""
    names = ("unlearned", "original", "retrained", "floor", "within")
    rows = {row.name: {n: getattr(row, n) for n in names} for row in audit.rows}
    return {"verdict": audit.verdict, "rows": rows}


def lines_of(study: Study):
    """Records of every model and source of proxies, and last, of every audit."""
    own, models = study.own, {}
    yield {"model": "original"} | study.judged("original", study.original)
    for name in own.methods or methods_of(own):
        models[name], told = study.unlearned(name)
        judged = study.judged(name, models[name])
        yield {"model": name, "method": told} | judged
    for name in SOURCES:
        if SOURCES[name] or name in models:
            yield {"source": name} | study.source(name)
    if not own.twins:
        return
    twins = [study.trained(1 + seed) for seed in range(own.twins)]
    whole = {"trained here, with the class": study.trained(0, whole=True)}
    others = {f"trained here, without it, {i + 1}": t for i, t in enumerate(twins)}
    for name, classifier in (whole | others).items():
        yield {"model": name} | study.judged(name, classifier)
    for name, audit in study.audits(models | whole, twins).items():
        yield {"audited": name} | audit
    for name, classifier in (
        {"original": study.original} | others | models | whole
    ).items():
        yield {"taught": name} | study.taught(name, classifier)


def main() -> None:
    """A line of JSON for every model and every source of proxies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="weights.safetensors of ResNet-8")
    parser.add_argument("folder", type=Path, help="where pieces are kept")
    parser.add_argument("--data-dir", type=Path, help="where TFDS keeps CIFAR-10")
    parser.add_argument("--forget", type=int, nargs="+", default=[3])
    parser.add_argument("--images", type=int, nargs=3, default=(2000, 500, 2000))
    parser.add_argument("--images-per-class", type=int, default=16)
    parser.add_argument("--inversion-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--budget", type=float, default=4.0, help="passes, distilled")
    parser.add_argument("--twins", type=int, default=2, help="trained here; 0: none")
    parser.add_argument("--epochs", type=int, default=1, help="of those")
    parser.add_argument("--methods", nargs="*", help="names, as they are printed")
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()
    original, pieces = classifier_of(load_file(own.weights)), Pieces(own.folder)
    ju.cache_compilations(own.folder / "programs")
    splits = {
        split: datasets.load("cifar10", split, data_dir=own.data_dir)
        for split in ("train", "validation", "test")
    }
    first = ju.Data(splits["test"].images[:2000], splits["test"].labels[:2000])
    settings = vars(own) | {"weights": None, "folder": None, "data_dir": None}
    settings = to_dict(settings | {"recipe": recipe_of(own)})
    # What changes no piece may differ.
    free = {name: None for name in ("forget", "methods", "twins")}
    made = pieces.record("settings", lambda: settings | free)
    if made | {"seconds": 0} != settings | free | {"seconds": 0}:
        parser.error(f"{own.folder} holds pieces of other settings: take another one.")
    about = {"settings": settings, "device": device_kind(), "versions": versions()}
    right = pieces.record("first-2000", lambda: ju.evaluate(original, first, ()))
    print(json.dumps({"first_2000": right["retained_weighted"]} | to_dict(about)))
    for forget in own.forget:
        for record in lines_of(Study(own, pieces, splits, original, forget)):
            line = to_dict({"forget": forget} | record)
            print(json.dumps(line, allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
