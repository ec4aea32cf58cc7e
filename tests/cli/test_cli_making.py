"""What rows of a comparison make: classes one after another, and what proxies miss."""

import json

import jax
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn import cli
from jaxunlearn.cli.compare import Compare
from jaxunlearn.cli.comparison import revival
from jaxunlearn.cli.flags import parse
from jaxunlearn.cli.making import Maker, captured
from jaxunlearn.cli.samples import Forgotten
from jaxunlearn.cli.settings import MethodSettings, keys
from jaxunlearn.cli.sources import train_network
from jaxunlearn.cli.variants import variants

SMALL = (
    *("--options", "width=2", "--recipe.epochs", "1", "--learning-rates"),
    *("--unsc.steps", "5", "--unsc.learning-rate", "0.5", "--seeds", "0"),
)


EYE = np.eye(6, 3, dtype=np.float32)


def test_order_and_correction_are_read_off_the_end_of_a_row():
    titles = [
        *("unsc", "unsc+in-turn", "unsc+in-turn=reversed"),
        "unsc:damping=1e-2+projected=1e+1+in-turn",
    ]
    rows = variants(MethodSettings(), titles)
    asked = (5, 3, 7)
    orders = [None, asked, asked[::-1], asked]
    assert [row.order(asked) for row in rows] == orders
    assert [row.order((5,)) for row in rows] == [None] * 4
    assert [row.damping for row in rows] == [None, None, None, 10.0]
    assert rows[3].method.damping == 1e-2


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("unsc+in-turn=back", "must be one of .asked., .reversed."),
        ("unsc+in-turns", "is none of"),
        ("unsc+projected=", "takes a positive damping"),
    ],
)
def test_other_ends_are_refused(title, said):
    with pytest.raises(ValueError, match=said):
        variants(MethodSettings(), [title])


def test_revival_is_the_largest_rise_since_a_class_was_forgotten():
    after = [
        {"forgotten": {"7": 2.0}},
        {"forgotten": {"7": 9.0, "1": 4.0}},
        {"forgotten": {"7": 3.5, "1": 4.5, "2": 90.0}},
    ]
    assert revival(after) == 1.5  # Neither what came and went nor the last class.


def test_proxies_capture_what_their_subspace_holds_of_the_retained_inputs():
    random = np.random.default_rng(0)
    proxies, retained = random.normal(size=(2, 4, 6)) * [3, 2, 1, 1, 0.5, 0.1]
    kernel = ju.Function(lambda p, s, x: x.reshape(len(x), 6) @ p["w"], {"w": EYE})
    method = ju.CovarNav(projection="hard", energy=0.8)
    images = (np.float32(x).reshape(4, 1, 2, 3) for x in (proxies, retained))
    (share,) = captured(method, ju.freeze(kernel), *images).values()
    _, s, vt = np.linalg.svd(proxies)
    rank = 1 + np.flatnonzero(np.cumsum(s**2) / (s**2).sum() >= 0.8)[0]
    inside = np.square(retained @ vt[:rank].T).sum() / np.square(retained).sum()
    assert share == pytest.approx(inside, abs=1e-5)
    assert 0.2 < share < 0.99


@pytest.mark.long
def test_every_class_is_a_request_that_starts_from_the_last():
    settings = parse("compare", Compare, [*SMALL, "--forget", "5,3"])
    splits = settings.load_splits()
    train = splits["train"]
    original = train_network(settings, splits, train, None, key=keys(0)[0])
    (row,) = variants(settings, ["unsc+in-turn"])
    result, said = Maker(settings, splits).unlearn(
        row, original, Forgotten((5, 3)), 0, None
    )

    key, before, costs = keys(0)[1], original, []
    for now, done in ((5, [5]), (3, [5, 3])):
        forget = train.take(np.flatnonzero(train.labels == now))
        retain = train.take(np.flatnonzero(~np.isin(train.labels, done)))
        task = ju.Task(forget, retain, done, num_classes=10)
        one = ju.UNSC(steps=5, learning_rate=0.5)(before, task, key=key)
        before = one.classifier
        costs.append(one.trace.samples_read["retain"])
    jax.tree.map(np.testing.assert_array_equal, before.params, result.classifier.params)
    assert result.trace.samples_read["retain"] == sum(costs)
    first, last = said["in_turn"]
    assert list(first["forgotten"]) == ["5"]
    final = ju.evaluate(before, splits["test"], [5, 3])
    assert last["forgotten"] == {c: final.per_class[int(c)] for c in ("5", "3")}
    assert last["retained"] == final.retained


@pytest.mark.long
def test_a_table_has_both_ways_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "mask-head", "mask-head+in-turn", "mask-head+in-turn=reversed"
    flags = "compare", *SMALL, "--forget", "5,3", "--which", "accuracy"
    assert cli.main([*flags, "--methods", *rows]) == 0
    record = json.loads((tmp_path / "runs/digits-compare/comparison.json").read_text())
    table = record["tables"][0]["rows"]
    # Masking logits gives the same in any order, and nothing comes back.
    means = [
        {n: m["mean"] for n, m in table[row].items() if n.startswith("accuracy")}
        for row in rows
    ]
    assert means[0] == means[1] == means[2]
    assert table["mask-head"].get("revival") is None
    assert table["mask-head+in-turn"]["revival"]["mean"] == 0
    files = {m["file"] for m in record["models"] if m["model"] in rows}
    assert len(files) == 3
