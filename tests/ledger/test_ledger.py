"""The ledger: requests one after another, from kept moments alone."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import outputs
import pytest

import jaxunlearn as ju
from jaxunlearn.ledger import ledger as module
from jaxunlearn.ledger import store as stores
from jaxunlearn.locking import Lock
from jaxunlearn.models.tensors import read_tensors
from jaxunlearn.tasks.hashes import digest

KEY = jax.random.key(7)
CLASSES = 5


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Dense(6)(images.reshape(len(images), -1)))
        return nn.Dense(CLASSES)(x)


def drawn(seed):
    """Noisy copies of five pictures."""
    draw = np.random.default_rng(seed)
    pictures = np.random.default_rng(0).integers(0, 256, (CLASSES, 4, 4, 1))
    labels = np.arange(8 * CLASSES) % CLASSES
    noise = draw.integers(-30, 30, (len(labels), 4, 4, 1))
    return ju.Data(np.clip(pictures[labels] + noise, 0, 255).astype(np.uint8), labels)


TRAIN, TEST = drawn(1), drawn(2)
UNSC = ju.UNSC(learning_rate=0.5, steps=4, energy=0.9, merge_energy=0.9)
RIDGE = ju.UNSC(learning_rate=0.5, steps=4, projection="ridge")


@pytest.fixture(scope="session")
def classifier():
    variables = Net().init(jax.random.key(3), jnp.ones((1, 4, 4, 1)))
    return ju.freeze(Net(), variables, preprocess=ju.Preprocess(0.5, 0.25))


@pytest.fixture(scope="session")
def opened(classifier, tmp_path_factory):
    """A folder with a new ledger, to be copied."""
    folder = tmp_path_factory.mktemp("ledgers") / "new"
    ju.Ledger.open(folder, classifier, TRAIN)
    return folder


@pytest.fixture(scope="session")
def served(opened, classifier, tmp_path_factory):
    """One that has served [3] and then [1]."""
    folder = tmp_path_factory.mktemp("ledgers") / "served"
    shutil.copytree(opened, folder)
    ledger = ju.Ledger.open(folder, classifier, TRAIN)
    ledger.forget([3], RIDGE, key=KEY, test=TEST)
    ledger.forget([1], RIDGE, key=jax.random.key(8))
    return folder


@pytest.fixture
def copy_of(tmp_path, classifier):
    """A ledger in a copy of a folder."""

    def copied(folder, train=TRAIN):
        here = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, here)
        return ju.Ledger.open(here, classifier, train)

    return copied


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def moments_of(classifier, data=TRAIN):
    given = {"num_classes": CLASSES}
    return ju.class_moments(classifier, data.images, data.labels, **given)


class Recording(ju.UNSC):
    """Notes what it protects."""

    seen = []

    def projection_of(self, statistics, forget_classes):
        self.seen.append(statistics.without(forget_classes))
        return super().projection_of(statistics, forget_classes)


@pytest.mark.parametrize(
    "method",
    [UNSC, dataclasses.replace(UNSC, subspace="pooled"), RIDGE],
    ids=["merged", "pooled", "ridge"],
)
def test_what_is_protected_depends_on_which_classes_are_left_alone(method, classifier):
    moments = jax.device_get(moments_of(classifier))

    def of_some(moment):
        gram, rows = moment.gram[[0, 2, 4]], moment.rows[[0, 2, 4]]
        return ju.Moment(gram, rows, moment.layout, (0, 2, 4))

    is_leaf = lambda node: isinstance(node, ju.Moment)  # noqa: E731
    some = jax.tree.map(of_some, moments, is_leaf=is_leaf)
    first = method.statistics_of_moments(moments).without((1, 3))
    second = method.statistics_of_moments(moments).without((3, 1))
    third = method.statistics_of_moments(some).without((3, 1))
    assert bits(first) == bits(second) == bits(third)


@pytest.mark.long
def test_a_projector_has_the_same_bits_in_whatever_order_classes_go(opened, copy_of):
    method, last = Recording(learning_rate=0.1, steps=1), []
    for order in ([[3], [1]], [[1], [3]], [[1, 3]]):
        ledger = copy_of(opened)
        for classes in order:
            result = ledger.forget(classes, method, key=KEY)
        assert result.trace.samples_read["retain"] == 0
        assert ledger.forgotten == (1, 3)
        last.append(bits(Recording.seen[-1]))
    assert last[0] == last[1] == last[2]


def kept_directions(gram, energy):
    """On the smallest leading eigenspace that reaches this share of the trace."""
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = int(np.searchsorted(np.cumsum(values) / values.sum(), energy)) + 1
    return vectors[:, :rank] @ vectors[:, :rank].T


def test_what_is_protected_is_the_eigenspace_of_the_sum(classifier):
    moments = moments_of(classifier)
    pooled = dataclasses.replace(UNSC, subspace="pooled")
    without = (1, 3)
    sums = pooled.statistics_of_moments(moments).without(without)
    bases = UNSC.statistics_of_moments(moments).without(without)
    for name, moment in oracles.by_path(moments).items():
        if moment is None:
            continue
        grams = oracles.double(moment.gram)[[0, 2, 4], 0]
        found = oracles.by_path(sums)[name].gram[0]
        np.testing.assert_allclose(found, grams.sum(0), rtol=1e-5, atol=1e-4)
        own = [kept_directions(gram, UNSC.energy) for gram in grams]
        merged = kept_directions(sum(own), UNSC.merge_energy)
        U = oracles.double(oracles.by_path(bases)[name].basis[0])
        np.testing.assert_allclose(U @ U.T, merged, atol=2e-4)


def test_from_moments_it_descends_as_from_the_images(classifier):
    forget, retain = ju.split_by_class(TRAIN, [3])
    given = {"forget_classes": [3], "num_classes": CLASSES}
    tasks = (
        ju.Task(forget, retain, **given),
        ju.Task(forget, **given, class_moments=moments_of(classifier)),
    )
    ends = [UNSC(classifier, task, key=KEY) for task in tasks]
    for one, other in zip(*(jax.tree.leaves(e.classifier) for e in ends), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert [e.trace.samples_read["retain"] for e in ends] == [len(retain), 0]


def test_the_certificate_is_that_of_the_formula(served, classifier, copy_of):
    ledger = copy_of(served)
    numbers = [entry.number for entry in ledger.log if entry.kind == "forget"]
    states = [
        read_tensors(ledger.folder / f"parameters-{number}.safetensors")[0]
        for number in (0, *numbers)
    ]
    moments = oracles.by_path(moments_of(classifier))
    for place, (entry, retained) in enumerate(
        zip(ledger.log[1:], ([0, 1, 2, 4], [0, 2, 4]), strict=True)
    ):
        for name, base in (("now", states[place]), ("accumulated", states[0])):
            for layer, found in entry.certificate[name].items():
                gram = oracles.double(moments[layer].gram)[retained, 0].sum(0)
                W, new = (
                    oracles.double(side[f"params/{layer}"])
                    for side in (base, states[place + 1])
                )
                dW = new - W
                change, size = (np.trace(m.T @ gram @ m) for m in (dW, W))
                drift = np.sqrt(change / size)
                assert found == pytest.approx(drift, rel=1e-3, abs=3.5e-4)
        assert entry.certificate["outside"] == []
        assert entry.certificate["since"] == 0


def test_biases_that_move_lie_outside_the_certificate(opened, copy_of):
    ledger = copy_of(opened)
    ledger.forget([0], ju.MaskHead(), key=KEY)
    found = ledger.log[-1].certificate
    assert found["outside"] == ["Dense_1/bias"]
    assert "Dense_1/bias moved" in found["warning"]
    assert "outside the certificate" in found["warning"]


def test_the_log_says_what_was_done(served, copy_of):
    ledger = copy_of(served)
    first, one, two = ledger.log
    rows = np.flatnonzero(TRAIN.labels == 3)
    assert [e.kind for e in ledger.log] == ["open", "forget", "forget"]
    assert one.samples["count"] == len(rows) == 8
    assert one.samples["indices_sha256"] == digest(rows)
    assert (one.classes, two.forgotten) == ((3,), (1, 3))
    assert one.method["name"] == "unsc"
    assert one.method["settings"]["projection"] == "ridge"
    assert one.test["forget_classes"] == [3]
    assert two.test is None
    assert one.samples_read["retain"] == two.samples_read["retain"] == 0
    assert (first.previous, ledger.forgotten) == ("", (1, 3))
    lines = (ledger.folder / "log.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert two.previous == stores.hash_of(lines[1])


def test_undo_goes_back_bit_for_bit(served, classifier, copy_of):
    ledger = copy_of(served)
    first = read_tensors(ledger.folder / "parameters-1.safetensors")[0]
    ledger.undo()
    assert ledger.forgotten == (3,)
    params = oracles.by_path(ledger.classifier.params)
    for name, leaf in params.items():
        assert np.asarray(leaf).tobytes() == first[f"params/{name}"].tobytes()
    ledger.undo()
    assert bits(ledger.classifier) == bits(classifier)
    assert [e.about for e in ledger.log] == [None, None, None, 2, 1]
    with pytest.raises(ValueError, match="nothing to undo: no request stands."):
        ledger.undo()
    # What was undone can be asked for again.
    ledger.forget([3], RIDGE, key=KEY)
    assert ledger.log[-1].parameters != ""
    again = read_tensors(ledger.path)[0]
    assert all(again[name].tobytes() == first[name].tobytes() for name in first)


def test_replay_leads_to_the_same_bits(served, copy_of):
    ledger = copy_of(served)
    found = ledger.replay()
    assert found.equal
    assert found.requests == 2
    assert set(found.differences.values()) == {0.0}
    assert ledger.log[-1].replay["equal"] is True
    assert ledger.forgotten == (1, 3)


def test_replay_tells_other_parameters(served, copy_of, monkeypatch):
    ledger = copy_of(served)
    real, other = ju.UNSC.projection_of, dataclasses.replace(RIDGE, damping=1.0)
    monkeypatch.setattr(
        ju.UNSC, "projection_of", lambda self, *given: real(other, *given)
    )
    found = ledger.replay()
    assert not found.equal
    assert max(found.differences.values()) > 0
    assert "NOT the stored parameters" in str(found)


@pytest.mark.filterwarnings("ignore::jaxunlearn.methods.NotForgotten")
def test_what_a_grid_chose_is_what_is_stored(opened, copy_of):
    ledger = copy_of(opened)
    result = ledger.forget([0], RIDGE, key=KEY, validation=TEST, grid=[0.1, 0.3])
    settings = ledger.log[-1].method["settings"]
    assert settings["learning_rate"] == result.trace.tuned["learning_rate"]
    assert ledger.replay().equal


def by_hand(classifier, task, *, key):
    del key
    params = jax.tree.map(lambda leaf: 0.5 * leaf, classifier.params)
    assert task.retain is None
    return ju.Result(classifier.replace(params=params))


def test_replay_refuses_methods_and_images_that_it_cannot_know(opened, copy_of):
    ledger = copy_of(opened)
    with pytest.raises(ValueError, match="nothing to replay"):
        ledger.replay()
    forget = ju.split_by_class(TEST, [2])[0]
    ledger.forget([2], RIDGE, key=KEY, forget=forget)
    assert ledger.log[-1].samples["indices_sha256"] is None
    with pytest.raises(ValueError, match="not those that entry 1 forgot"):
        ledger.replay()
    assert ledger.replay(forget={1: forget}).equal
    ledger.forget([0], by_hand, key=KEY)
    assert ledger.log[-1].method == {"name": "by_hand", "settings": {}}
    with pytest.raises(ValueError, match="'by_hand', which is none of methods.by_name"):
        ledger.replay(forget={1: forget})


def test_commit_deletes_what_could_bring_classes_back(served, classifier, copy_of):
    ledger = copy_of(served)
    folder = ledger.folder
    current = bits(ledger.classifier)
    old = {
        name: tensor
        for path in folder.glob("parameters-[01].safetensors")
        for name, tensor in read_tensors(path)[0].items()
        if tensor.tobytes() not in current
    }
    moments = read_tensors(folder / "moments-0.safetensors")[0]
    secrets = [tensor.tobytes() for tensor in old.values()]
    secrets += [
        g[c].tobytes() for n, g in moments.items() if "gram" in n for c in (1, 3)
    ]
    assert len(secrets) > 4
    ledger.commit()
    everything = contents(folder)
    assert not any(s in content for s in secrets for content in everything.values())
    kept = read_tensors(folder / "moments-3.safetensors")[0]
    for name, tensor in kept.items():
        np.testing.assert_array_equal(tensor, moments[name][[0, 2, 4]])
    assert sorted(everything) == [
        *("ledger.json", "log.jsonl", "moments-3.safetensors"),
        "parameters-2.safetensors",
    ]
    assert ledger.log[-1].deleted == (
        *("moments-0.safetensors", "parameters-0.safetensors"),
        "parameters-1.safetensors",
    )
    with pytest.raises(
        ValueError, match=r"nothing to undo.*classes 1, 3 went for good"
    ):
        ledger.undo()
    with pytest.raises(ValueError, match="nothing to commit"):
        ledger.commit()
    with pytest.raises(ValueError, match="class 3, which is forgotten already"):
        ledger.forget([3], RIDGE, key=KEY)
    assert bits(ledger.classifier) == current
    again = ju.Ledger.open(folder, ledger.classifier, TRAIN)
    again.forget([0], RIDGE, key=KEY)
    assert again.forgotten == (0, 1, 3)
    assert again.log[-1].certificate["since"] == 2
    with pytest.raises(ValueError, match="other parameters"):
        ju.Ledger.open(folder, classifier)


@pytest.mark.parametrize(
    ("event", "moment"),
    [
        *(("forget", "files"), ("forget", "log"), ("forget", "head")),
        *(("undo", "head"), ("commit", "files"), ("commit", "head")),
    ],
)
def test_an_event_that_is_killed_leaves_the_ledger_as_before(
    event, moment, served, classifier, copy_of, monkeypatch
):
    ledger = copy_of(served)
    before, counted = bits(ledger.classifier), len(ledger.log)
    names = {"files": ".safetensors", "log": "log.jsonl", "head": "ledger.json"}

    class Killed(BaseException):
        pass

    real = stores.atomic_write

    def killing(path):
        if path.name.endswith(names[moment]):
            raise Killed
        return real(path)

    monkeypatch.setattr("jaxunlearn.models.tensors.atomic_write", killing)
    monkeypatch.setattr("jaxunlearn.ledger.store.atomic_write", killing)
    monkeypatch.setattr("jaxunlearn.serialization.atomic_write", killing)
    calls = {"forget": lambda: ledger.forget([0], RIDGE, key=KEY)}
    calls |= {"undo": ledger.undo, "commit": ledger.commit}
    with pytest.raises(Killed):
        calls[event]()
    monkeypatch.undo()
    for opened in (ledger, ju.Ledger.open(ledger.folder, classifier, TRAIN)):
        assert bits(opened.classifier) == before
        assert len(opened.log) == counted
        assert opened.forgotten == (1, 3)
    opened.undo()
    assert opened.log[-1].about == 2
    assert not opened._state.store.unnamed(opened._state.head)


def test_what_a_killed_commit_left_goes_when_it_is_opened(served, classifier, copy_of):
    ledger = copy_of(served)
    left = ledger.folder / "moments-0.safetensors"
    content = left.read_bytes()
    ledger.commit()
    left.write_bytes(content)
    ju.Ledger.open(ledger.folder, classifier=ledger.classifier)
    assert not left.exists()


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("moments-0.safetensors", "moments-0.safetensors is damaged"),
        ("parameters-0.safetensors", "parameters-0.safetensors is damaged"),
        ("parameters-2.safetensors", "parameters-2.safetensors is damaged"),
        ("ledger.json", "ledger.json is"),
        ("log.jsonl", "Line 3 of .*log.jsonl does not follow"),
    ],
)
def test_a_damaged_file_is_named(file, sentence, served, classifier, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(served, folder)
    path = folder / file
    content = bytearray(path.read_bytes())
    if file == "log.jsonl":
        content = content.replace(b'"count": 8', b'"count": 9', 1)
    elif file == "ledger.json":
        content = content.replace(b'"entries": 3', b'"entries": 2')
    else:
        content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        ju.Ledger.open(folder, classifier)
    path.unlink()
    missing = "There is no ledger" if file == "ledger.json" else f"{file} is missing"
    with pytest.raises(ValueError, match=missing):
        ju.Ledger.open(folder)


def test_a_log_that_ends_early_or_was_written_anew_is_refused(served, copy_of):
    folder = copy_of(served).folder
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]))
    with pytest.raises(ValueError, match="not the log that ledger.json knows"):
        ju.Ledger.open(folder)
    last = json.loads(lines[2]) | {"time": "yesterday"}
    log.write_text("".join((*lines[:2], json.dumps(last))))
    with pytest.raises(ValueError, match="not the log that ledger.json knows"):
        ju.Ledger.open(folder)


def test_the_network_must_be_the_ledgers(opened, classifier, tmp_path):
    with pytest.raises(ValueError, match="open it with classifier="):
        ju.Ledger.open(opened)
    other = classifier.replace(
        params=jax.tree.map(lambda leaf: leaf + 1, classifier.params)
    )
    with pytest.raises(ValueError, match="other parameters than those that"):
        ju.Ledger.open(opened, other)
    with pytest.raises(ValueError, match="has the preprocessing None"):
        ju.Ledger.open(opened, classifier.replace(preprocess=None))
    with pytest.raises(ValueError, match="classifier and train are needed"):
        ju.Ledger.open(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no ledger, and other files"):
        ju.Ledger.open(tmp_path, classifier, TRAIN)


@pytest.mark.parametrize(
    ("classes", "method", "options", "sentence"),
    [
        ([], RIDGE, {}, "classes are empty"),
        ([3], RIDGE, {}, "class 3, which is forgotten already"),
        ([5], RIDGE, {}, "class 5, which does not exist"),
        (["bee"], RIDGE, {}, "they have numbers alone"),
        ([0, 2, 4], RIDGE, {}, "all that is left of 5"),
        ([0], ju.FineTune(), {}, "FineTune as it is set reads images .* UNSC works"),
        ([0], ju.Retrain(), {}, "Retrain trains from scratch"),
        ([0], ju.CovarNav(stand_in="retained"), {}, "CovarNav as it is set reads"),
        ([0], RIDGE, {"forget": TEST}, "classes do not ask to forget"),
        ([0], RIDGE, {"test": ju.Data(np.zeros((1, 2, 2, 1), "uint8"), [0])}, "shape"),
    ],
)
def test_requests_are_refused_before_anything_is_computed(
    classes, method, options, sentence, served, copy_of, monkeypatch
):
    monkeypatch.setattr(module, "forget_task", lambda *_, **__: pytest.fail("called"))
    ledger = copy_of(served)
    before = contents(ledger.folder)
    with pytest.raises(ValueError, match=sentence):
        ledger.forget(classes, method, key=KEY, **options)
    assert contents(ledger.folder) == before


def test_without_images_a_request_is_refused(served, copy_of):
    ledger = copy_of(served, train=None)
    with pytest.raises(ValueError, match=r"no images of class 0 to forget"):
        ledger.forget([0], RIDGE, key=KEY)


@pytest.mark.long
@pytest.mark.parametrize("name", ju.methods.by_name)
def test_a_method_says_whether_it_reads_retained_images(name, classifier):
    method = ju.methods.by_name[name]()
    forget = ju.split_by_class(TRAIN, [3])[0]
    task = ju.Task(forget, forget_classes=[3], num_classes=CLASSES)
    if method.reads_retained:
        with pytest.raises(ValueError, match="retain"):
            method(classifier, task, key=KEY)
    else:
        few = {"steps": 1} if hasattr(method, "steps") else {}
        few |= {"inversion_steps": 1} if name == "covarnav" else {}
        result = dataclasses.replace(method, **few)(classifier, task, key=KEY)
        assert result.trace.samples_read["retain"] == 0


def test_one_process_at_a_time_writes(served, classifier, copy_of):
    ledger = copy_of(served)
    other = ju.Ledger.open(ledger.folder, classifier)
    other.undo()
    with pytest.raises(ValueError, match="has changed since it was opened here"):
        ledger.undo()
    assert isinstance(ledger._state.store.lock, Lock)


@pytest.mark.long
def test_whether_a_class_comes_back_is_measured(served, copy_of):
    ledger = copy_of(served)
    given = {"key": KEY, "target": 60.0, "cap": 5}
    found = ledger.revival(TRAIN, TEST, **given, append=True)
    assert set(found) == {1, 3}
    evaluation = ju.evaluate(ledger.classifier, TEST, (1, 3))
    for c, one in found.items():
        assert one.accuracy == evaluation.per_class[c]
        assert 0 <= one.probe <= 100
        assert 1 <= one.relearn_steps <= 5
    assert ledger.log[-1].kind == "revival"
    assert ledger.log[-1].revival["3"]["target"] == 60
    counted = len(ledger.log)
    ledger.revival(TRAIN, TEST, **given)
    assert len(ledger.log) == counted
    ledger.undo()
    ledger.undo()
    with pytest.raises(ValueError, match="no class is forgotten"):
        ledger.revival(TRAIN, TEST, **given)


def test_every_key_of_the_log_has_its_line(served, copy_of):
    ledger = copy_of(served)
    ledger.revival(TRAIN, TEST, key=KEY, cap=1, append=True)
    ledger.replay()
    ledger.undo()
    head = json.loads((ledger.folder / "ledger.json").read_text())
    outputs.check_keys(head, "ledger.json", complete=["ledger.json"])
    ledger.commit()
    lines = (ledger.folder / "log.jsonl").read_text().splitlines()
    records, page = [json.loads(line) for line in lines], "log.jsonl of a ledger"
    together = {}
    for record in records:
        outputs.check_keys(record, page, complete=())
        together |= {k: v for k, v in record.items() if v or k not in together}
    outputs.check_keys(together, page, complete=[page])
