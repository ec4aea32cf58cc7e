# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # Forget a digit, step by step
#
# A small classifier learns ten digits; then it forgets the threes without seeing any
# retained image again. `jupytext --to ipynb quickstart.py` makes a notebook of this.

# %%
import jax
import numpy as np
import optax

import jaxunlearn as ju

train, validation, test = (
    ju.datasets.load("digits", split) for split in ("train", "validation", "test")
)
classifier = ju.training.fit(
    ju.models.create("smallcnn", num_classes=10),
    train,
    recipe=ju.training.Recipe(),
    key=jax.random.key(0),
    preprocess=ju.datasets.preprocess("digits"),
)
print(ju.evaluate(classifier, test, [3]))

# %% [markdown]
# Every weight's input is read off the program. Leaves without one stay as they are.

# %%
for record in ju.layer_table(classifier, train.images):
    print(f"{record.path:20} {record.kind or '-':6} {record.reason or record.d}")

# %% [markdown]
# ## Images that stand in for the retained data

# %%
forget, retain = ju.split_by_class(train, [3])
labels = np.repeat([c for c in range(10) if c != 3], 16)
proxies = ju.invert(
    classifier, labels, image_shape=(8, 8, 1), key=jax.random.key(1), steps=200
)
agreement = (classifier(proxies).argmax(axis=1) == labels).mean()
print(f"{len(proxies)} images, of which the model recognises {agreement:.0%}")

# %% [markdown]
# ## What must not be touched
#
# The second moment of each layer's inputs, and the subspace that holds 99 % of it.

# %%
moments = ju.second_moments(classifier, proxies)
subspaces = ju.subspaces(moments, energy=0.99)
for name, layer in subspaces.items():
    if layer.get("kernel") is not None:
        _, d, r = layer["kernel"].basis.shape
        print(f"{name}: {r} of {d} directions protected")

# %% [markdown]
# ## Forget
#
# Runner-up labels; the projection comes last in the chain.

# %%
targets = ju.runner_up_labels(classifier(forget.images), forget.labels, exclude=[3])
tx = optax.chain(optax.sgd(0.1), ju.project_to_null_space(subspaces))
result = ju.unlearn(
    classifier, forget.images, targets, tx, steps=100, key=jax.random.key(2)
)
after = ju.evaluate(result.classifier, test, [3])
print(after)
assert after.forgotten < 20 < 90 < after.retained

# %% [markdown]
# ## How far did the retained logits move?
#
# The true retained images were kept for this question alone.

# %%
kept = test.labels != 3
change = ju.metrics.relative_change(
    classifier(test.images[kept]), result.classifier(test.images[kept])
)
print(f"retained logits changed by {change:.1%}")
true_moments = ju.second_moments(classifier, retain.images)
drifts = ju.drift(true_moments, classifier.params, result.classifier.params)
for path, drift in jax.tree_util.tree_leaves_with_path(drifts):
    print(jax.tree_util.keystr(path, simple=True, separator="/"), f"{drift:.4f}")
