"""What a first and a further unlearning request trace and compile.

    python benchmarks/compilation.py

UNSC requests on the digits with equal shapes: each forgets another class of as many
samples, with new bases of other ranks. Counts come from JAX's own events.
"""

import json
import time

import jax
import numpy as np

import jaxunlearn as ju

EVENTS = {
    "traces": "/jax/core/compile/jaxpr_trace_duration",
    "compilations": "/jax/core/compile/backend_compile_duration",
}


class Counter:
    """Counts JAX's tracing and compiling while it is open."""

    def __enter__(self):
        """Start counting."""
        self.counts = dict.fromkeys(EVENTS, 0)
        self.start = time.perf_counter()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_):
        """Stop counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
        self.seconds = time.perf_counter() - self.start

    def _listen(self, event, duration, **_):
        for name, wanted in EVENTS.items():
            self.counts[name] += event == wanted


def request(classifier, train, label, size):
    """One UNSC request with a fixed number of forget and retain samples."""
    forget, retain = ju.split_by_class(train, [label])
    task = ju.Task(
        ju.Data(forget.images[:size], forget.labels[:size]),
        retain,
        (label,),
        num_classes=10,
    )
    method = ju.UNSC(subspace="pooled", learning_rate=0.1, steps=20, batch_size=64)
    return method(classifier, task, key=jax.random.key(label))


def main():
    """Print one JSON line a request."""
    train = ju.datasets.load("digits", "train")
    classifier = ju.training.fit(
        ju.models.create("smallcnn", num_classes=10),
        train,
        recipe=ju.training.Recipe(epochs=3),
        key=jax.random.key(0),
        preprocess=ju.datasets.preprocess("digits"),
    )
    size = int(np.bincount(train.labels).min())
    for number, label in enumerate((3, 5, 8), start=1):
        with Counter() as counter:
            result = request(classifier, train, label, size)
            jax.block_until_ready(result.classifier.params)
        print(
            json.dumps(
                {
                    "request": number,
                    "class": label,
                    **counter.counts,
                    "seconds": round(counter.seconds, 2),
                    "ranks": {k: v[0] for k, v in result.trace.ranks.items()},
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
