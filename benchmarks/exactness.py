"""How much retained logits change under an exact null space.

    python benchmarks/exactness.py

Few retained samples, a network with strided and padded convolutions and dense layers,
200 steps of each optimizer. In float64 what is left is rounding; in float32 one step
shows what the forward pass rounds, at the precision that the device takes by default
and at "highest".
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxunlearn as ju

OPTIMIZERS = {
    "sgd, momentum": lambda: optax.sgd(0.05, momentum=0.9),
    "adamw, decay": lambda: optax.adamw(3e-3, weight_decay=1e-2),
    "lion": lambda: optax.lion(1e-3),
    "adafactor": lambda: optax.adafactor(1e-2),
}


class Network(nn.Module):
    """Wide enough that four images do not fill any layer's input space."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        """Logits."""
        kwargs = {"dtype": self.dtype, "param_dtype": self.dtype}
        x = nn.relu(nn.Conv(24, (3, 3), (2, 2), **kwargs)(x))
        x = nn.relu(nn.Conv(64, (3, 3), (2, 2), padding=((1, 0), (0, 1)), **kwargs)(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(64, **kwargs)(x))
        return nn.Dense(5, **kwargs)(x)


def relative(before, after):
    """`|after - before| / |before|`."""
    before, after = (np.asarray(x, np.float64) for x in (before, after))
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def data(dtype):
    """A classifier, four retained and sixteen forget images."""
    keys = jax.random.split(jax.random.key(0), 3)
    images = [
        jax.random.normal(k, (n, 8, 8, 12), dtype)
        for k, n in zip(keys, (4, 16), strict=False)
    ]  # noqa: E501
    model = Network(dtype)
    classifier = ju.freeze(model, model.init(keys[2], images[0]))
    return classifier, *images


def run(classifier, retain, forget, subspaces, optimizer, steps):
    """Relative change of retained and of forget logits."""
    targets = ju.runner_up_labels(
        classifier(forget), classifier(forget).argmax(1).astype(jnp.int32)
    )
    tx = optax.chain(optimizer, ju.project_to_null_space(subspaces))
    key = jax.random.key(1)
    after = ju.unlearn(classifier, forget, targets, tx, steps=steps, key=key).classifier
    return [relative(classifier(x), after(x)) for x in (retain, forget)]


def main():
    """Print one JSON line a case."""
    with jax.enable_x64(True):
        classifier, retain, forget = data(jnp.float64)
        rows = ju.row_subspaces(classifier, retain, rtol=1e-12)
        moments = ju.subspaces(ju.second_moments(classifier, retain), rtol=1e-7)
        for name, make in OPTIMIZERS.items():
            for source, subspaces in (("rows", rows), ("moments", moments)):
                kept, moved = run(classifier, retain, forget, subspaces, make(), 200)
                report("float64", 200, name, source, kept, moved)
    for precision in ("default", "highest"):
        with jax.default_matmul_precision(precision):
            classifier, retain, forget = data(jnp.float32)
            subspaces = ju.row_subspaces(classifier, retain, rtol=1e-6)
            kept, moved = run(classifier, retain, forget, subspaces, optax.sgd(0.1), 1)
            report(f"float32, {precision}", 1, "sgd", "rows", kept, moved)


def report(dtype, steps, optimizer, source, kept, moved):
    """One JSON line."""
    print(
        json.dumps(
            {
                "dtype": dtype,
                "steps": steps,
                "optimizer": optimizer,
                "subspaces_from": source,
                "retained_change": kept,
                "forget_change": moved,
                "device": jax.devices()[0].device_kind,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
