"""The rows that every weight meets, against NumPy twins of a table of networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from networks import (
    CASES,
    FROZEN,
    Case,
    every_case,
    every_short_case,
    flat,
    nnx_module,
    quick_compilation,
    written,
)
from oracles import by_path, double, relative_error, sort_rows

import jaxunlearn as ju


def named(*names):
    """Parametrise over these cases of the table."""
    chosen = [case for case in CASES if case.name in names]
    assert len(chosen) == len(names)
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


def find(name) -> Case:
    return next(case for case in CASES if case.name == name)


def elements(case, layout, leaf, matrix):
    """Where the oracle's groups and rows stand in the library's reading of a leaf.

    Returns:
      `places [g, d]`: row `places[i, j]` of the library, counted over all groups, is
      the oracle's row `j` of group `i`.
    """
    ours = double(layout.to_matrix(leaf))
    assert ours.shape == matrix.shape
    if case.own_order:
        np.testing.assert_array_equal(ours, matrix)
    key = np.sort(ours.reshape(-1, ours.shape[-1]))
    places = []
    for row in np.sort(matrix.reshape(-1, matrix.shape[-1])):
        (found,) = np.flatnonzero((key == row).all(1))
        places.append(found)
    return np.reshape(places, matrix.shape[:2])


def reorder(places, rows):
    """The library's rows `[g, n, d]` in the oracle's order of groups and fan-in."""
    groups, d = places // places.shape[1], places % places.shape[1]
    assert (groups == groups[:, :1]).all(), "a group mixes rows of several"
    return np.stack([rows[g[0]][:, at] for g, at in zip(groups, d, strict=True)])


@pytest.mark.core
@every_case
def test_layer_inputs_are_the_rows_of_a_twin_that_has_the_logits(case):
    with quick_compilation(), jax.enable_x64(True):
        classifier, images = case.classifier(np.float64), case.images(3, np.float64)
        run = jax.jit(lambda c, x: (c(x), ju.layer_inputs(c, x)))
        logits, found = run(classifier, images)
        found, leaves = by_path(found), by_path(classifier.params)
        tapes, expected = zip(
            *(case.run_twin(classifier, image[None]) for image in images), strict=True
        )
    # The twin itself: rows that give the logits are the rows.
    assert relative_error(logits, np.concatenate(expected)) <= case.error[0]
    assert tapes[0].paths() | set(case.frozen) == set(leaves)
    assert not tapes[0].paths() & set(case.frozen)

    assert {path for path in found if found[path] is not None} == tapes[0].paths()
    for path in tapes[0].paths():
        layout, rows = found[path].layout, double(found[path].inputs)
        matrix = tapes[0].matrix(path)
        places = elements(case, layout, leaves[path], matrix)
        rows = reorder(places, rows)
        # Images lead the rows.
        assert rows.shape[1] % len(images) == 0
        for i, tape in enumerate(tapes):
            own = rows.reshape(len(rows), len(images), -1, rows.shape[-1])[:, i]
            for g, expected in enumerate(tape.rows(path)):
                mine = own[g]
                if case.branches:
                    mine = mine[np.any(mine != 0, axis=1)]
                assert mine.shape == expected.shape
                mine, expected = sort_rows(mine), sort_rows(expected)
                assert relative_error(mine, expected) <= case.error[1]
                # And they make the layer's outputs.
                outputs = expected @ matrix[g]
                assert relative_error(mine @ matrix[g], outputs) <= 10 * case.error[1]


@pytest.mark.long
@every_short_case
def test_the_table_lists_every_leaf(case):
    classifier, images = case.classifier(), case.images(2)
    tape, _ = case.run_twin(classifier, images[:1])
    table = {record.path: record for record in ju.layer_table(classifier, images)}
    assert list(table) == list(by_path(classifier.params))
    for path, record in table.items():
        assert record.shape == tape[path].shape
        if path in case.frozen:
            assert case.frozen[path] in record.reason
            assert (record.kind, record.g, record.d, record.out) == (None,) * 4
            assert record.rows == 0
        else:
            matrix = tape.matrix(path)
            assert record.reason is None
            assert (record.g, record.d, record.out) == matrix.shape
            if not case.branches:
                assert record.rows == tape.count(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("linen: conv in two groups", "conv"),
        ("nnx: transposed conv", "conv"),
        ("channels first", "conv"),
        ("linen: dense over two axes", "dense"),
        ("nnx: scanned layers", "dense"),
        ("linen: einsum with a batch axis in the kernel", "einsum"),
        ("nnx: dense with a batch axis", "einsum"),
    ],
)
def test_the_table_names_the_kind(name, kind):
    case = find(name)
    table = ju.layer_table(case.classifier(), case.images(1))
    assert {record.kind for record in table} - {None} == {kind}


@pytest.mark.core
@pytest.mark.parametrize("case", FROZEN, ids=lambda case: case.name)
def test_a_leaf_without_an_input_is_frozen_with_its_reason(case):
    classifier, images = case.classifier(), case.images(1)

    def inputs(classifier, images):
        found = by_path(ju.layer_inputs(classifier, images))
        return {path: value and value.inputs for path, value in found.items()}

    found = jax.eval_shape(inputs, classifier, images)
    assert {path for path, value in found.items() if value is None} == set(case.frozen)
    for record in ju.layer_table(classifier, images):
        word = case.frozen.get(record.path)
        assert (record.reason is None) == (word is None)
        assert word is None or word in record.reason
        assert (record.rows > 0) == (word is None)


def test_a_choice_made_for_each_image_is_noted():
    """Both sides count; what stands before them has no note."""
    case = find("branch chosen for each image")
    table = ju.layer_table(case.classifier(), case.images(2))
    notes = {record.path: record.note for record in table}
    assert "side" in notes["a"]
    assert "side" in notes["b"]
    assert not notes["c"]


@named(
    "branch taken by the state",
    "switch of three",
    "branch taken by a scan's counter",
    "branch taken by a loop's counter",
    "slices taken by a scan's counter",
)
def test_a_branch_that_no_image_decides_has_no_note(case):
    table = ju.layer_table(case.classifier(), case.images(2))
    assert [record.note for record in table] == [""] * len(table)


def test_rows_are_of_preprocessed_images():
    class Head(nn.Module):
        @nn.compact
        def __call__(self, images):
            return nn.Dense(2)(images.reshape(images.shape[0], -1))

    pixels = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3)).astype(np.uint8)
    variables = Head().init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))
    mean, std = (0.25, 0.5, 0.75), (0.5, 0.25, 0.125)
    classifier = ju.freeze(Head(), variables, preprocess=ju.Preprocess(mean, std))
    (found,) = by_path(ju.layer_inputs(classifier, pixels))["Dense_0/kernel"].inputs
    expected = (pixels / 255 - np.asarray(mean)) / np.asarray(std)
    assert relative_error(found, expected.reshape(3, -1)) <= 1e-6


@pytest.mark.long
@pytest.mark.core
@pytest.mark.parametrize("devices", [2, 8])
@named("linen: conv net", "linen: scanned layers", "nnx: attention",
       "linen: transposed conv, kernel stored transposed")  # fmt: skip
def test_layer_inputs_inside_shard_map_are_those_of_the_shard(case, devices):
    mesh = jax.make_mesh((devices,), ("shard",))
    split, whole = PartitionSpec("shard"), PartitionSpec()
    classifier, images = case.classifier(), case.images(16)
    tape, _ = case.run_twin(classifier, images)
    paths = sorted(tape.paths())

    def grams(classifier, images):
        found = by_path(ju.layer_inputs(classifier, images))
        rows = [found[path].inputs for path in paths]
        with jax.default_matmul_precision("highest"):
            sums = [jnp.einsum("gnd,gne->gde", r, r) for r in rows]
        return jax.lax.psum(sums, "shard")

    sharded = jax.shard_map(grams, mesh=mesh, in_specs=(whole, split), out_specs=whole)
    result = jax.jit(sharded)(
        jax.device_put(classifier, NamedSharding(mesh, whole)),
        jax.device_put(images, NamedSharding(mesh, split)),
    )
    for path, gram in zip(paths, result, strict=True):
        expected = np.linalg.eigvalsh(tape.gram(path))
        assert relative_error(np.linalg.eigvalsh(double(gram)), expected) <= 1e-5


def test_layer_inputs_of_stacked_classifiers():
    """vmap over parameters: the first layer's rows are shared, the second's are not."""
    case = find("linen: layers used twice")
    images = case.images(2)
    members = [case.classifier(seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    found = jax.jit(jax.vmap(ju.layer_inputs, (0, None)))(stacked, images)
    for i, member in enumerate(members):
        tape, _ = case.run_twin(member, images)
        for path in tape.paths():
            rows = double(by_path(found)[path].inputs[i])
            assert relative_error(rows.mT @ rows, tape.gram(path)) <= 1e-5


def test_layer_inputs_can_be_differentiated():
    """The rows of the second layer move with the first layer's weight."""
    case = find("custom gradients")
    classifier, images = case.classifier(), case.images(2)

    def energy(a):
        moved = classifier.replace(params={**classifier.params, "a": a})
        return jnp.sum(ju.layer_inputs(moved, images)["b"].inputs ** 2)

    x = double(images).reshape(2, -1)
    expected = 2 * x.T @ (x @ double(classifier.params["a"]))
    gradient = jax.jit(jax.grad(energy))(classifier.params["a"])
    assert relative_error(gradient, expected) <= 1e-5


class BatchStatistics(nnx.Module):
    """BatchNorm that insists on the statistics of the batch."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.head = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, images):
        x = self.norm(images, use_running_average=False)
        return self.head(x.reshape(images.shape[0], -1))


MIXING = [
    written("mean of the batch", lambda p, x: flat(x - x.mean(0)[None]) @ p["w"],
            w=(12, 3)),
    written("sorted batch", lambda p, x: jnp.sort(flat(x), 0) @ p["w"], w=(12, 3)),
    written("neighbours", lambda p, x: flat(x + 0.1 * x[::-1]) @ p["w"], w=(12, 3)),
    Case("batch statistics", lambda: nnx_module(BatchStatistics), None, (3, 2, 2)),
]  # fmt: skip


@pytest.mark.core
@pytest.mark.parametrize("case", MIXING, ids=lambda case: case.name)
def test_a_network_that_mixes_its_images_is_refused(case):
    classifier, images = case.classifier(), case.images(4)
    labels = np.arange(4) % 2
    for call in (
        lambda: ju.layer_inputs(classifier, images),
        lambda: ju.second_moments(classifier, images),
        lambda: ju.class_moments(classifier, images, labels, num_classes=2),
    ):
        with pytest.raises(ValueError, match="must depend on that image alone"):
            call()


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((0, 3, 2, 2), np.float32), "empty"),
        (np.full((2, 3, 2, 2), np.nan, np.float32), "NaN or infinite.*2 of 2.*index 0"),
        (np.zeros((3, 2, 2), np.float32), "n, h, w, c"),
    ],
)
def test_images_that_cannot_be_rows_are_refused(images, words):
    classifier = find("leaf through a copy").classifier()
    with pytest.raises(ValueError, match=words):
        ju.layer_inputs(classifier, images)
