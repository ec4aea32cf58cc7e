"""Checkpoints: whole or not there, checked, and resumed from to the last bit."""

import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from killing import environment, killed_until_done
from orbax.checkpoint import StandardCheckpointHandler
from test_training import Linear, Noisy, NoisyNNX, toy

import jaxunlearn
from jaxunlearn import parallel
from jaxunlearn.descent import loop
from jaxunlearn.tasks import Data
from jaxunlearn.training import Recipe, fit
from jaxunlearn.training.checkpoints import Checkpoints

pytestmark = pytest.mark.long

KEY = jax.random.key(0)
# Three steps an epoch.
RECIPE = Recipe(epochs=4, batch_size=10, learning_rate=0.05, crop_padding=1, flip=True)


def tree(value=1):
    value = float(value)
    return {
        "full": jnp.full((3, 2), value),
        "half": jnp.full(4, value, jnp.bfloat16),
        "count": jnp.int32(7),
        "none": jnp.zeros((0, 2)),
        "layers": [{0: jnp.arange(3, dtype=jnp.uint32)}, (jnp.array([True, False]),)],
        "key": jax.random.split(jax.random.key(3)),
    }


def test_an_interruption_waits_until_a_checkpoint_is_read(tmp_path, monkeypatch):
    checkpoints, done = Checkpoints(tmp_path), []
    checkpoints.save(1, tree(), {})
    restored = StandardCheckpointHandler.restore

    def restore(*given, **options):
        os.kill(os.getpid(), signal.SIGINT)
        done.append(restored(*given, **options))
        return done[0]

    monkeypatch.setattr(StandardCheckpointHandler, "restore", restore)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.newest().arrays(tree())
    assert done


def plain(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert plain(x).tobytes() == plain(y).tobytes()
        assert x.shape == y.shape


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip_a_byte(path, place=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place is None else place] ^= 1
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


# -- folders ---------------------------------------------------------------------------


def test_what_was_saved_is_what_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path / "there" / "yet")
    assert checkpoints.newest() is None
    checkpoints.save(5, tree(), {"best": [0.1, 2]})
    newest = checkpoints.newest()
    assert (newest.step, newest.facts) == (5, {"best": [0.1, 2]})
    assert newest.folder == tmp_path / "there" / "yet" / "5"
    assert_same_bits(newest.arrays(tree(0)), tree())


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"w": jnp.ones(4)}, r"shape: \(4,\) is not compatible .* stored .* \(3,\)"),
        ({"v": jnp.ones(3)}, "tree structures do not match"),
    ],
)
def test_another_tree_is_not_read_into(tmp_path, other, sentence):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, {"w": jnp.ones(3)}, {})
    with pytest.raises(ValueError, match=sentence):
        checkpoints.newest().arrays(other)


def test_the_last_ones_are_kept_and_named_by_their_steps(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (3, 20, 100):
        checkpoints.save(step, {"w": jnp.full(2, step)}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100", "20"]
    assert checkpoints.steps() == [20, 100]
    assert checkpoints.newest().arrays({"w": jnp.zeros(2, int)})["w"][0] == 100


def test_older_ones_stay_until_the_new_one_is_there(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, tree(), {})
    noise = np.random.default_rng(0).random((300, 300))
    # As on a full disk: no file grows beyond a hundred thousand bytes.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        words = r"step 2 cannot be written to .* \(File too large\)\. Make room there"
        with pytest.raises(OSError, match=words):
            checkpoints.save(2, {"noise": noise}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert_same_bits(checkpoints.newest().arrays(tree(0)), tree())
    checkpoints.save(2, {"noise": noise}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_what_a_kill_left_is_never_read_and_removed_with_the_next_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(), {})
    (tmp_path / ".2-unfinished" / "arrays").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    assert checkpoints.newest().step == 1
    checkpoints.save(3, tree(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "notes"]


def test_each_byte_of_each_file_matters(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(1), {})
    checkpoints.save(2, tree(2), {})
    draw = random.Random(0)
    for path in files(tmp_path / "2"):
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, draw.randrange(len(whole))}:
            flip_a_byte(path, place)
            newest = checkpoints.newest()
            assert newest.step == 1, f"{path.name}, byte {place} of {len(whole)}"
            assert_same_bits(newest.arrays(tree()), tree(1))
            path.write_bytes(whole)
    assert checkpoints.newest().step == 2


def largest(folder):
    return max(files(folder), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda p: truncate(largest(p / "arrays")), "is not what was written"),
        (lambda p: largest(p / "arrays").write_bytes(b""), "is not what was written"),
        (lambda p: largest(p / "arrays").unlink(), "is missing"),
        (lambda p: (p / "facts.json").unlink(), "facts.json is missing"),
        (lambda p: (p / "more").write_text("x"), "more is not what was written"),
        (lambda p: (p / "checksums.json").unlink(), "cannot be read"),
        (lambda p: (p / "checksums.json").write_text("{"), "is no JSON"),
        (lambda p: (p / "checksums.json").write_text("{}"), "is not what was written"),
    ],
)
def test_a_broken_checkpoint_falls_back_and_says_so(tmp_path, caplog, damage, why):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, tree(step), {})
    damage(tmp_path / "3")
    assert_same_bits(checkpoints.newest().arrays(tree()), tree(2))
    (message,) = caplog.messages
    assert message.startswith(f"The checkpoint {tmp_path / '3'} is broken (")
    assert why in message
    assert message.endswith(f"): going on from {tmp_path / '2'}.")


def test_with_every_checkpoint_broken_there_is_none(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tree(), {})
        (tmp_path / str(step) / "checksums.json").unlink()
    assert checkpoints.newest() is None
    assert len(caplog.messages) == 2
    assert all(m.endswith("training starts anew.") for m in caplog.messages)


def test_broken_ones_ahead_do_not_count_as_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(9, tree(), {})
    checkpoints.save(5, tree(5), {})
    assert checkpoints.steps() == [5]
    checkpoints.save(9, tree(9), {})
    assert_same_bits(checkpoints.newest().arrays(tree()), tree(9))
    # In place of a broken one of the same step too.
    checkpoints.save(9, tree(8), {})
    assert_same_bits(checkpoints.newest().arrays(tree()), tree(8))


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(4, {"layer": {"w": jnp.array([1.0, np.nan])}}, {})
    with pytest.raises(ValueError, match="4 holds NaN or infinite values at layer/w"):
        checkpoints.newest().arrays({"layer": {"w": jnp.zeros(2)}})


def test_a_place_or_a_number_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match="link is a link to nothing: checkpoints need"):
        Checkpoints(tmp_path / "link" / "there")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file: checkpoints need a folder"):
        Checkpoints(tmp_path / "file")
    with pytest.raises(ValueError, match="keep must be at least 1; it is 0"):
        Checkpoints(tmp_path, keep=0)


# -- training --------------------------------------------------------------------------


class Stop(Exception):
    """Ends a training from its callback."""


def model_of(kind):
    return Noisy() if kind == "linen" else NoisyNNX(nnx.Rngs(0))


def train(
    kind="linen", *, stop_at=None, recipe=RECIPE, seen=None, data=None, **options
):
    def callback(step, loss):
        if seen is not None:
            seen.append(step)
        if step == stop_at:
            raise Stop

    return fit(
        model_of(kind),
        toy() if data is None else data,
        recipe=recipe,
        key=KEY,
        callback=callback,
        **options,
    )


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_an_interrupted_training_ends_with_the_bits_of_one_that_was_not(
    tmp_path, kind, slow, monkeypatch
):
    monkeypatch.setattr(parallel, "loops_are_slow", lambda: slow)
    monkeypatch.setattr(loop, "CHUNK_BYTES", 2 * 10 * 16)
    whole = train(kind)
    for stop_at, every in ((4, 1), (4, 2), (8, 3), (11, 5)):
        folder = tmp_path / f"{stop_at}-{every}"
        options = {"checkpoint_dir": folder, "checkpoint_every": every}
        with pytest.raises(Stop):
            train(kind, stop_at=stop_at, **options)
        newest = Checkpoints(folder).newest().step
        # The callback comes after its step, by up to a chunk and the one in flight.
        assert stop_at - every <= newest <= stop_at + 1
        seen = []
        resumed = train(kind, seen=seen, resume=True, **options)
        assert seen == list(range(newest, 12))
        assert newest > 0
        assert_same_bits(resumed, whole)


def test_checkpoints_change_nothing(tmp_path):
    assert_same_bits(train(checkpoint_dir=tmp_path, checkpoint_every=2), train())
    assert Checkpoints(tmp_path).steps() == [8, 10, 12]


def test_by_default_there_is_one_an_epoch_and_one_at_the_end(tmp_path):
    train(checkpoint_dir=tmp_path, keep=9)
    assert Checkpoints(tmp_path).steps() == [3, 6, 9, 12]
    train(checkpoint_dir=tmp_path / "5", checkpoint_every=5, keep=9)
    assert Checkpoints(tmp_path / "5").steps() == [5, 10, 12]


def test_a_finished_training_is_returned_at_once(tmp_path, caplog):
    first = train(checkpoint_dir=tmp_path)
    seen = []
    with caplog.at_level(logging.INFO, logger="jaxunlearn.training"):
        again = train(checkpoint_dir=tmp_path, resume=True, seen=seen)
    assert seen == []
    assert_same_bits(first, again)
    assert caplog.messages[-1] == "the training was finished after 12 steps"


def test_with_nothing_to_resume_it_starts_anew(tmp_path):
    seen = []
    anew = train(checkpoint_dir=tmp_path / "none", resume=True, seen=seen)
    assert seen[0] == 0
    assert_same_bits(anew, train())


@pytest.mark.parametrize("stop_at", [4, 8, 13, 16])
def test_early_stopping_resumes_with_its_best_epoch_and_its_patience(tmp_path, stop_at):
    rng = np.random.default_rng(0)
    validation = Data(toy(40, 1).images, rng.integers(0, 3, 40))
    recipe = Recipe(epochs=30, batch_size=10, patience=4, schedule="constant")
    options = {"recipe": recipe, "validation": validation}
    steps = []
    whole = train(seen=steps, **options)
    assert stop_at < len(steps) < 90
    folder = tmp_path / "c"
    with pytest.raises(Stop):
        train(stop_at=stop_at, checkpoint_dir=folder, checkpoint_every=2, **options)
    seen = []
    resumed = train(checkpoint_dir=folder, resume=True, seen=seen, **options)
    assert_same_bits(resumed, whole)
    assert seen[-1] == steps[-1]
    finished = train(checkpoint_dir=folder, resume=True, **options)
    assert_same_bits(finished, whole)


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_training_goes_on_from_the_newest_whole_checkpoint(tmp_path, caplog, damage):
    with pytest.raises(Stop):
        train(stop_at=10, checkpoint_dir=tmp_path, checkpoint_every=3)
    assert Checkpoints(tmp_path).steps() == [3, 6, 9]
    data = largest(tmp_path / "9" / "arrays")
    if damage == "flip":
        flip_a_byte(data)
    else:
        truncate(data)
    seen = []
    resumed = train(checkpoint_dir=tmp_path, checkpoint_every=3, resume=True, seen=seen)
    assert seen[0] == 6
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    (warning,) = warnings
    assert "9 is broken" in warning
    assert warning.endswith(f"going on from {tmp_path / '6'}.")
    assert_same_bits(resumed, train())
    caplog.clear()
    assert_same_bits(train(checkpoint_dir=tmp_path, resume=True), resumed)
    assert not caplog.records


def test_a_training_does_not_begin_where_another_left_checkpoints(tmp_path):
    train(checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"holds checkpoints .* 12\): .*resume=True"):
        train(checkpoint_dir=tmp_path)


def unit(add=0.0):
    """Samples that are pixels, as for a `Preprocess`."""
    data = toy()
    return Data(np.clip(data.images / 10 + add, 0, 1), data.labels)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"recipe": Recipe(epochs=5)}, r"recipe.epochs \(4 there, 5 here\)"),
        ({"data": unit(0.1)}, "samples: give"),
        ({"data": toy(31)}, r"number of samples \(30 there, 31 here\); samples"),
        ({"kind": "nnx"}, "network"),
        ({"preprocess": jaxunlearn.Preprocess(0, 1)}, "preprocess"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path, changed, named):
    train(checkpoint_dir=tmp_path, data=unit())
    sentence = f"12 is a checkpoint of another training, which differs in .*{named}"
    with pytest.raises(ValueError, match=sentence):
        train(checkpoint_dir=tmp_path, resume=True, **({"data": unit()} | changed))


def test_another_key_is_another_training(tmp_path):
    options = {"recipe": RECIPE, "checkpoint_dir": tmp_path, "resume": True}
    fit(Noisy(), toy(), key=jax.random.key(0), **options)
    with pytest.raises(ValueError, match=r"key \(\[0, 0\] there, \[0, 1\] here\)"):
        fit(Noisy(), toy(), key=jax.random.key(1), **options)


def test_a_rate_of_dropout_is_part_of_the_network_and_a_function_s_address_is_not(
    tmp_path,
):
    class Dropping(nn.Module):
        rate: float
        activation: object = None

        @nn.compact
        def __call__(self, images, train=False):
            x = nn.Dropout(self.rate, deterministic=not train)(images)
            return nn.Dense(3)(x.reshape(len(x), -1))

    def run(rate):
        model = Dropping(rate, activation=lambda x: x)
        fit(model, toy(), key=KEY, recipe=RECIPE, checkpoint_dir=tmp_path, resume=True)

    run(0.5)
    run(0.5)
    with pytest.raises(ValueError, match="differs in network"):
        run(0.4)


def test_other_devices_are_warned_of(tmp_path, caplog):
    with pytest.raises(Stop):
        train(stop_at=5, checkpoint_dir=tmp_path)
    mesh = jax.make_mesh((2,), ("data",))
    found = train(checkpoint_dir=tmp_path, resume=True, mesh=mesh)
    assert any(
        "number of devices (1 there, 2 here)" in m and "last bit" in m
        for m in caplog.messages
    )
    for a, b in zip(
        jax.tree.leaves(found.params), jax.tree.leaves(train().params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_a_training_on_several_devices_resumes_to_the_bit(tmp_path):
    mesh = jax.make_mesh((2,), ("data",))
    for kind in ("linen", "nnx"):
        folder = tmp_path / kind
        with pytest.raises(Stop):
            train(kind, stop_at=5, checkpoint_dir=folder, mesh=mesh)
        resumed = train(kind, checkpoint_dir=folder, resume=True, mesh=mesh)
        assert_same_bits(resumed, train(kind, mesh=mesh))


def test_a_diverged_training_leaves_its_checkpoints(tmp_path):
    recipe = Recipe(
        epochs=9, batch_size=10, learning_rate=1e3, warmup_epochs=9, weight_decay=1.0
    )
    options = {"recipe": recipe, "key": KEY, "checkpoint_every": 1, "keep": 99}
    with pytest.raises(FloatingPointError, match="training has diverged"):
        fit(Linear(), toy(), checkpoint_dir=tmp_path, **options)
    newest = Checkpoints(tmp_path).newest()
    assert newest.step > 0
    arrays = [*files(tmp_path / str(newest.step))]
    assert arrays
    with pytest.raises(FloatingPointError, match="training has diverged"):
        fit(Linear(), toy(), checkpoint_dir=tmp_path, resume=True, **options)


def test_parameters_that_the_last_step_has_ruined_are_no_result():
    recipe = Recipe(
        epochs=1, batch_size=30, learning_rate=3e38, warmup_epochs=0, weight_decay=9.0
    )
    with pytest.raises(
        FloatingPointError, match="After the last step params/.* holds NaN or inf"
    ):
        fit(Linear(), toy(), recipe=recipe, key=KEY)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"resume": True}, "resume has no effect without checkpoint_dir"),
        ({"checkpoint_every": 5}, "checkpoint_every has no effect without"),
        (
            {"checkpoint_dir": "never", "checkpoint_every": 0},
            "checkpoint_every must be at least 1; it is 0",
        ),
        ({"checkpoint_dir": "never", "keep": 0}, "keep must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        train(**options)
    assert not Path("never").exists()


# -- kills -----------------------------------------------------------------------------

CHILD = """
import sys
import jax, numpy as np
from flax import nnx
from jaxunlearn import datasets
from jaxunlearn.training.reports import MetricLog
from jaxunlearn.training import Recipe, fit

class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(4, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.conv(images))).mean(axis=(1, 2))
        return self.last(self.dropout(x))

folder, every = sys.argv[1], int(sys.argv[2])
with MetricLog(folder + "/metrics.jsonl") as log:
    classifier = fit(
        Network(nnx.Rngs(0)), datasets.load("digits", "train"),
        recipe=Recipe(epochs=10, crop_padding=1, flip=True), key=jax.random.key(5),
        preprocess=datasets.preprocess("digits"), log=log,
        checkpoint_dir=folder + "/checkpoints", checkpoint_every=every, resume=True,
    )
leaves = jax.tree.leaves((classifier.params, classifier.state))
plain = [x for x in leaves if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)]
np.savez(folder + "/result.npz", *plain)
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_killed_training_ends_with_the_bits_of_one_that_was_not(tmp_path, by):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    env = environment(tmp_path / "cache")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()

    def command(name, every):
        return [sys.executable, str(script), str(tmp_path / name), str(every)]

    whole = subprocess.run(
        command("whole", 50), env=env, check=False, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stderr
    draw = random.Random(int(time.time()))
    folder = tmp_path / "killed"
    killed_until_done(command("killed", 6), folder, env, 6, draw, kills=2, by=by)
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    assert all(name.isdecimal() for name in names)
    with (
        np.load(tmp_path / "whole" / "result.npz") as whole,
        np.load(folder / "result.npz") as killed,
    ):
        assert list(whole) == list(killed)
        for name in whole:
            assert whole[name].tobytes() == killed[name].tobytes()
