"""What the settings of `ResetAndDistill` and `LayerwiseTeacher` cost in accuracy.

    PYTHONPATH=. python benchmarks/distillation_settings.py --classes 6 4 > OUT.jsonl

Fashion-MNIST at 14 x 14, all of it, smallcnn of width 8, ten epochs, one original. A
line for every setting: Acc_r and Acc_f on validation data, by which alone settings were
chosen, steps, and multiply-adds as a share of retraining's. Test data are not read.
"""

import argparse
import json
import os
import sys
import time

import jax

import jaxunlearn as ju
from jaxunlearn import datasets, methods, models
from jaxunlearn.methods.multiply_adds import Costs

EPOCHS = 10
RESET = methods.ResetAndDistill(budget=1.0)
# One damping is taken without trials.
ONE = RESET.replace(dampings=(0.1,))
TEACHER = methods.LayerwiseTeacher()
SETTINGS = {
    "masked head": methods.MaskHead(),
    "reset, the default": RESET,
    **{
        f"reset, damping {d:g}": ONE.replace(dampings=(d,))
        for d in (0.05, 0.1, 0.2, 0.5)
    },
    **{f"reset, rate {r:g}": ONE.replace(learning_rate=r) for r in (0.03, 0.1, 1.0)},
    **{
        f"reset, teacher at {t:g}": ONE.replace(teacher_temperature=t)
        for t in (1.0, 4.0)
    },
    "reset, three weights above": ONE.replace(layers=3),
    "reset, 1 above": ONE.replace(damping_high=1.0),
    "from scratch": RESET.replace(layers=0),
    **{
        f"teacher, {n} samples": TEACHER.replace(samples=n) for n in (3000, 5000, 10000)
    },
    "teacher, all samples": TEACHER.replace(samples=None),
}


def main() -> None:
    """Train the original, and run every setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[6, 4])
    parser.add_argument("--data-dir", default=os.environ.get("TFDS_DATA_DIR"))
    own = parser.parse_args()
    given = {"data_dir": own.data_dir, "size": (14, 14)}
    train, validation = (
        datasets.load("fashion_mnist", split, **given)
        for split in ("train", "validation")
    )
    original = ju.training.fit(
        models.create("smallcnn", num_classes=10, width=8),
        train,
        recipe=ju.training.Recipe(epochs=EPOCHS),
        preprocess=datasets.preprocess("fashion_mnist", **given),
        key=jax.random.key(0),
    )
    step = Costs(original, train.images).step()
    for forgotten in own.classes:
        forget, retain = ju.split_by_class(train, [forgotten])
        task = ju.Task(
            forget, retain, [forgotten], num_classes=10, validation=validation
        )
        for title, method in SETTINGS.items():
            begun = time.process_time()
            result = method(original, task, key=jax.random.key(1))
            seconds = time.process_time() - begun
            found, trace = (
                ju.evaluate(result.classifier, validation, [forgotten]),
                result.trace,
            )
            spent = sum((trace.multiply_adds or {}).values())
            record = {
                "class": forgotten,
                "setting": title,
                "validation": [round(found.retained, 2), round(found.forgotten, 2)],
                "steps": len(trace.losses),
                "tuned": trace.tuned,
                "caution": trace.caution,
                "share": round(spent / (EPOCHS * len(retain) * step), 4),
                "processor_seconds": round(seconds, 1),
            }
            print(json.dumps(record))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
