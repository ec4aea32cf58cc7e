"""A small folder and small classifiers for the tests of the report."""

import functools
import json

import jax
import numpy as np

import jaxunlearn as ju
from jaxunlearn.report.contents import Cell, Contents, PageTable, SampleSets, ShownModel
from jaxunlearn.serialization import to_dict, write_json

FORGOTTEN = 1
# Names that would be markup, or leave an attribute, if they were not escaped.
NAMES = ("<script>alert(1)</script>", '" onload="alert(2)', "b & 'c'", "long " * 9)
_HIDDEN = np.random.default_rng(5).normal(size=(36, 12)).astype(np.float32)


def samples(seed, n=80):
    """Four classes of images of 6 x 6 pixels: a bright quarter each."""
    rng = np.random.default_rng(seed)
    images, labels = rng.uniform(size=(n, 6, 6, 1)) * 0.8, np.arange(n) % 4
    for image, label in zip(images, labels, strict=True):
        row, column = 3 * (label // 2), 3 * (label % 2)
        image[row : row + 3, column : column + 3] += 0.2
    return ju.Data(images.astype(np.float32), labels, NAMES)


def network(params, state, images):
    """A hidden layer and a head."""
    del state
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ params["hidden"])
    return hidden @ params["head"]


def solved(data, seed=0):
    """A classifier whose head is a least-squares fit of random features."""
    noise = np.random.default_rng(seed).normal(size=_HIDDEN.shape) / 20
    hidden = (_HIDDEN + noise).astype(np.float32)
    rows = np.maximum(np.asarray(data.images).reshape(len(data), -1) @ hidden, 0)
    head = np.linalg.lstsq(rows, np.eye(4)[data.labels], rcond=None)[0]
    params = {"hidden": hidden, "head": head.astype(np.float32)}
    return ju.freeze(ju.Function(network, params))


TRAIN, TEST = samples(0), samples(1)
FORGET, RETAIN = ju.split_by_class(TRAIN, [FORGOTTEN])


@functools.cache
def classifiers():
    """By name: what is unlearned lacks the forgotten column of the head."""
    original = solved(TRAIN)
    head = np.array(original.params["head"])
    head[:, FORGOTTEN] = -1
    return {
        "original": original,
        "masked": original.replace(params=original.params | {"head": head}),
        "retrained": solved(RETAIN),
        "retrained-2": solved(RETAIN, seed=1),
    }


ROLES = {"original": "original", "masked": "unlearned"}
LAYERS = {
    "ranks": {"hidden": [30], "head": [7]},
    "surviving_gradient": {"hidden": 0.25, "head": 0.0},
    "drift": {"hidden": 0.0, "head": 0.5},
}


RESULTS = PageTable(
    "Models on test data",
    [("model", ""), ("Acc_f", "accuracy, %"), ("probe", "recall, %")],
    [
        [Cell("original"), Cell("75.0", 75.0, "+75.0 ± 4.0", within=False), Cell("")],
        [
            Cell("masked"),
            Cell("0.0", 0.0, "= +0.0 ± 4.0", within=True),
            Cell("80", 80.0),
        ],
        [Cell("retrained"), Cell("9.5", 9.5), Cell("57.5", 57.5)],
    ],
)


@functools.cache
def contents():
    """All that a page can show."""
    proxies = ju.Data(np.asarray(RETAIN.images), RETAIN.labels)
    models = [
        ShownModel(
            name,
            ROLES.get(name, "retrained"),
            LAYERS if name == "masked" else {},
            classifier,
        )
        for name, classifier in classifiers().items()
    ]
    return Contents(
        kind="run",
        title=f"{NAMES[0]} and others",
        what=f"Forgotten: class {FORGOTTEN}: {NAMES[FORGOTTEN]}",
        verdicts={"masked": "output-level only"},
        remarks={"masked": "Outside the noise: probe +20."},
        results=[RESULTS],
        models=models,
        num_classes=4,
        class_names=NAMES,
        forget_classes=(FORGOTTEN,),
        samples=SampleSets(train=TRAIN, test=TEST, forget=FORGET, retain=RETAIN),
        proxies=proxies,
        proxy_quality={
            "captured_energy": {"hidden": 0.91, "head": None},
            "ranks": {"hidden": [30], "head": [7]},
            "accuracy": 90.0,
            "second_accuracy": None,
        },
        facts={"folder": "<b>here</b>"},
        settings={"dataset": NAMES[0]},
        key=jax.random.key(3),
    )


def audit_row(name, unlearned, original, retrained, floor, censored=()):
    """As the JSON of an audit holds it."""
    mean = sum(retrained) / len(retrained)
    gap = unlearned - mean
    bounds = [name in censored for name in ("unlearned", "original")]
    return {
        "name": name,
        "unlearned": unlearned,
        "original": original,
        "retrained": list(retrained),
        "gap": gap,
        "floor": floor,
        "within": abs(gap) <= floor,
        "censored": [*bounds, *[False] * len(retrained)],
        "seconds": 0.5,
    }


ROWS = [
    audit_row("accuracy/retained", 81.0, 90.0, (82.0, 84.0), 3.0),
    audit_row("accuracy/forgotten", 0.0, 75.0, (0.0, 0.0), 4.0),
    audit_row("probe", 80.0, 85.0, (55.0, 60.0), 6.0),
    audit_row("relearn", 150.0, 12.0, (60.0, 70.0), 10.0, ("unlearned",)),
]
AUDIT = {"rows": ROWS, "verdict": "output-level only", "forget_classes": [FORGOTTEN]}


def write_run(folder, **changes):
    """A folder as `jaxunlearn run` leaves it, without classifiers."""
    folder.mkdir(parents=True, exist_ok=True)
    records = {}
    for name, classifier in classifiers().items():
        if name == "retrained-2":
            continue
        test = to_dict(ju.evaluate(classifier, TEST, [FORGOTTEN]))
        seconds = {"steps": 2.0, "compile": 9.0}
        records[name] = {
            "test": test,
            "seconds": seconds,
            "tuned": {"learning_rate": 0.1} if name == "masked" else {},
            "at_edge": False,
            "samples_read": {},
            **(LAYERS if name == "masked" else {}),
        }
    metrics = {
        "classifiers": records,
        "audits": {"masked": AUDIT},
        "proxies": None,
        "learning_rate_rule": "by hand",
        "samples": {"train": 80, "test": 80},
        "versions": {"jaxunlearn": "0"},
        "device": "cpu",
        "devices": 1,
    } | changes
    config = {"dataset": "digits", "model": "smallcnn", "seed": 0, "forget": [1]}
    write_json(folder / "metrics.json", metrics)
    (folder / "config.json").write_text(json.dumps(config))
    return metrics
