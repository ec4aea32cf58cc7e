"""`jaxunlearn compare`: what is made, what is kept, and what the tables say."""

import csv
import json
import math
import shutil
import sys

import numpy as np
import outputs
import pytest
from killing import environment, kill_at
from scipy import stats

from jaxunlearn import cli
from jaxunlearn.cli import cells
from jaxunlearn.cli.comparison import (
    COLUMNS,
    Measure,
    Place,
    blindness,
    mean_of_requests,
    measures_of_audit,
    measures_of_reference,
    summarise,
    verdict,
)
from jaxunlearn.cli.comparison_plot import plot_comparison
from jaxunlearn.cli.exports import latex, markdown
from jaxunlearn.cli.settings import MethodSettings
from jaxunlearn.cli.variants import variants

QUICK = (
    *("compare", "--options", "width=2", "--recipe.epochs", "1"),
    *("--seeds", "0", "1", "--which", "accuracy", "class-mean"),
    *("--learning-rates", "0.1"),
)


def test_a_row_is_the_mean_over_training_seeds_with_a_t_interval():
    values, targets = [64.0, 66.5, 63.1], [52.0, 54.0, 55.5]
    by_seed = [
        [{"probe": Measure(v, t, floor=f)}]
        for v, t, f in zip(values, targets, (3.0, 4.0, 5.0), strict=True)
    ]
    probe = summarise(by_seed)["probe"]
    sem = np.std(values, ddof=1) / math.sqrt(3)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=sem)
    assert probe.mean == pytest.approx(np.mean(values))
    assert probe.half_width == pytest.approx((high - low) / 2)
    # Pairs of the same training seed: their spread, not that of the values.
    gaps = np.subtract(values, targets)
    _, high = stats.t.interval(0.95, 2, loc=0, scale=stats.sem(gaps))
    assert probe.gap == pytest.approx(gaps.mean())
    assert probe.gap_half_width == pytest.approx(high)
    assert probe.floor == pytest.approx(4.0)
    assert probe.within is False
    assert probe.against(".1f") == "+10.7"


@pytest.mark.parametrize(
    ("values", "blind"),
    [
        ({"probe": 53.0, "class-mean": 54.0}, True),
        ({"probe": 53.0, "class-mean": 90.0}, False),
        ({"accuracy/forgotten": 0.0}, False),  # none was made
    ],
)
def test_it_is_said_where_no_audit_tells_the_original_from_retraining(values, blind):
    def row(values):
        by_seed = [{n: Measure(v, 54.0, floor=2.0) for n, v in values.items()}] * 2
        return summarise([[one] for one in by_seed])

    # How accurate it is on the forgotten class does not matter.
    rows = {"original": row({"accuracy/forgotten": 99.0} | values)}
    rows["mask-head"] = row(dict.fromkeys(values, 0.0))
    sentence = "says nothing about its inside"
    assert (sentence in blindness(rows)) is blind
    assert (sentence in markdown({"3": (rows, {})}, "digits")) is blind


def test_unlearning_seeds_are_averaged_before_the_interval():
    by_seed = [[{"probe": Measure(v)} for v in pair] for pair in ((1, 3), (5, 7))]
    probe = summarise(by_seed)["probe"]
    assert (probe.mean, probe.seeds) == (4.0, 2)
    assert probe.half_width == pytest.approx(stats.t.ppf(0.975, 1) * 2)
    assert probe.gap is probe.within is None


def test_one_training_seed_has_no_interval_and_no_verdict():
    probe = summarise([[{"probe": Measure(5.0, 5.0, floor=1.0)}]])["probe"]
    assert math.isnan(probe.half_width)
    assert probe.within is None
    assert probe.text(".1f") == "5.0"


def test_what_is_a_bound_is_marked():
    by_seed = [[{"relearn": Measure(150.0, 80.0, 10.0, bound)}] for bound in (">", "")]
    assert summarise(by_seed)["relearn"].text(".0f").startswith(">150")


def test_the_mean_over_requests_keeps_the_floor_of_one():
    one, two = {"probe": Measure(2.0, 4.0, 1.0)}, {"probe": Measure(6.0, 4.0, 3.0)}
    assert mean_of_requests([one, two])["probe"] == Measure(4.0, 4.0, 2.0)


def _audit(retrained, censored):
    row = {"name": "probe", "unlearned": 60.0, "original": 70.0, "floor": 2.0}
    return {"rows": [row | {"retrained": retrained, "censored": censored}]}


def test_a_model_is_paired_with_the_retrained_one_of_its_seed():
    audit, place = _audit([50.0, 54.0], [False, False, True, True]), Place(1, 2)
    record = {
        "train": {"forgotten_weighted": 10.0, "retained_weighted": 90.0},
        "test": {"confusion": [[8, 2], [1, 9]]},
        "seconds": {"steps": 2.0, "statistics": 1.0, "compile": 9.0, "rates": 9.0},
        "samples_read": {"retain": 7},
    }
    twin = record | {"seconds": {"steps": 12.0, "compile": 1.0}}
    twin |= {"train": {"forgotten_weighted": 0.0, "retained_weighted": 95.0}}
    measures = measures_of_audit(record, audit, twin, place)
    assert measures["probe"] == Measure(60.0, 54.0, 2.0)
    assert measures["share"].value == pytest.approx(0.25)
    assert measures["tow"].value == pytest.approx(0.9 * 0.95)
    assert measures["read/retain"].value == 7.0
    assert measures_of_reference(audit, "original", place)["probe"].value == 70.0
    retrained = measures_of_reference(audit, "retrained", place)["probe"]
    assert retrained.value == 54.0
    assert math.isnan(retrained.target)
    assert retrained.bound == ">"


@pytest.mark.parametrize(
    ("censored", "said"),
    [
        ([False, False, False, False], {"anamnesis": Measure(0.3)}),
        ([False, False, True, True], {"anamnesis": Measure(0.3, bound="<")}),
        ([True, False, False, False], {"anamnesis": Measure(0.3, bound=">")}),
        ([True, False, True, True], {}),
    ],
)
def test_the_anamnesis_index_says_on_which_side_it_is_a_bound(censored, said):
    row = {"name": "relearn", "unlearned": 12.0, "original": 1.0, "floor": 2.0}
    row |= {"retrained": [40.0, 40.0], "censored": censored}
    record = {
        "train": {"forgotten_weighted": 0.0, "retained_weighted": 95.0},
        "test": {"confusion": [[9, 1], [1, 9]]},
        "seconds": {"steps": 1.0},
        "samples_read": {},
    }
    measures = measures_of_audit(record, {"rows": [row]}, record, Place(0, 2))
    assert {n: m for n, m in measures.items() if n == "anamnesis"} == said


@pytest.mark.parametrize(
    ("accuracy", "probe", "said"),
    [
        (60.0, 70.0, "not forgotten"),
        (0.5, 69.0, "output-level only"),
        (0.5, 52.0, "within the noise of retraining"),
        (0.5, 40.0, "over-forgotten"),
        (0.5, 56.0, "between the original and retraining"),
    ],
)
def test_the_verdict_is_that_of_the_means(accuracy, probe, said):
    def row(*pairs):
        names = "accuracy/forgotten", "probe"
        one = {n: Measure(*p, 2.0) for n, p in zip(names, pairs, strict=True)}
        return summarise([[one], [one]])

    targets = 0.0, 51.0
    mine = row((accuracy, targets[0]), (probe, targets[1]))
    original = row((68.0, targets[0]), (70.0, targets[1]))
    retrained = row(*((target, target) for target in targets))
    assert verdict(mine, original, retrained) == said


def _rows():
    by_seed = {"unsc:a=b_c": (5.0, 6.0), "retrained": (5.0, 5.5)}
    return {
        title: summarise([[{"probe": Measure(v, 5.0, 2.0)}] for v in values])
        for title, values in by_seed.items()
    }


def test_markdown_and_latex_hold_every_row():
    tables = {"3": (_rows(), {"unsc:a=b_c": "output-level only"})}
    text = markdown(tables, "digits")
    (line,) = (row for row in text.splitlines() if row.startswith("| unsc:a=b_c"))
    assert "5.5 ± 6.4 (=)" in line
    assert line.rstrip(" |").endswith("output-level only")
    assert "\\toprule" in latex(tables)
    assert "unsc:a=b\\_c" in latex(tables)


def test_the_same_results_are_the_same_picture(tmp_path):
    for name in ("a.svg", "b.svg", "a.pdf", "b.pdf"):
        plot_comparison(tmp_path / name, _rows(), "digits_$x$")
    for kind in ("svg", "pdf"):
        pair = [(tmp_path / f"{n}.{kind}").read_bytes() for n in "ab"]
        assert pair[0] == pair[1]


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("usc", "--methods must be one of"),
        ("unsc:rate=1", "'rate=1' is no FIELD=VALUE of unsc"),
        ("unsc:steps", "'steps' is no FIELD=VALUE"),
        ("unsc:steps=many", "must be an integer; it is 'many'"),
        ("unsc:steps=0", "--methods unsc:steps=0: steps must be"),
        ("unsc:targets=wrong", "targets must be one of"),
        ("unsc+projected=0", "takes a positive damping"),
        ("unsc+projected=x", "takes a positive damping"),
    ],
)
def test_a_method_that_does_not_exist_is_refused(title, said):
    with pytest.raises(ValueError, match=said):
        variants(MethodSettings(), [title])


def test_a_variant_sets_fields_of_every_type():
    titles = [
        "unsc:energy=None,damping=1e-2,projection=ridge",
        "last-layers-reset:distil=true",
    ]
    first, second = variants(MethodSettings(), titles)
    assert first.method.energy is None
    assert first.method.damping == 0.01
    assert second.method.distil is True
    assert first.grid == MethodSettings().learning_rates
    assert first.damping is None
    (projected,) = variants(MethodSettings(), ["ssd:alpha=2+projected=0.01"])
    assert (projected.method.alpha, projected.damping) == (2.0, 0.01)
    (fixed,) = variants(MethodSettings(), ["unsc:learning_rate=0.2"])
    assert (fixed.grid, fixed.method.learning_rate) == ((), 0.2)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--methods", "retrain"], "leave it out of --methods"),
        (["--methods", "unsc", "unsc"], "each once"),
        (["--seeds"], "--seeds takes at least one seed"),
        (["--seeds", "1", "1"], "each once"),
        (["--unlearning-seeds", "-1"], "--unlearning-seeds must be 0 or more"),
        (["--forget", "each", "3"], "each by itself, or sets of classes"),
        (["--forget", "11"], "does not exist"),
        (["--which", "pobe"], "--which"),
    ],
)
def test_bad_requests_are_sentences(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of two methods over two training seeds, and the cache it leaves."""
    folder = tmp_path_factory.mktemp("compare")
    cache, out = ("--cache", str(folder / "cache")), ("--out", str(folder / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXUNLEARN_COMPILATION_CACHE", "off")
        assert cli.main([*QUICK, *cache, *out, "--methods", "mask-head", "kodge"]) == 0
    return folder


def _rows_of(folder):
    record = json.loads((folder / "comparison.json").read_text())
    return record["tables"][0]["rows"]


@pytest.mark.long
def test_every_model_is_beside_its_retrained_twin(compared):
    record = json.loads((compared / "out/comparison.json").read_text())
    outputs.check_keys(record, "comparison.json", complete=["comparison.json"])
    (table,) = record["tables"]
    assert not outputs.measured(name for row in table["rows"].values() for name in row)
    assert list(table["rows"]) == ["original", "retrained", "mask-head", "kodge"]
    rows = table["rows"]
    assert rows["mask-head"]["accuracy/forgotten"]["mean"] == 0
    assert rows["mask-head"]["accuracy/forgotten"]["gap"] == 0
    # Its features are the original's.
    for key in ("mean", "half_width", "gap"):
        both = (rows[t]["class-mean"][key] for t in ("mask-head", "original"))
        assert len({*both}) == 1
    assert rows["retrained"]["share"]["mean"] == 1
    assert set(table["verdicts"]) == {"mask-head", "kodge"}
    assert {m["training_seed"] for m in record["models"]} == {0, 1}
    masked = [m["per_class"] for m in record["models"] if m["model"] == "mask-head"]
    kept = np.delete(masked, 3, axis=1).mean()
    assert kept == pytest.approx(rows["mask-head"]["accuracy/retained"]["mean"])
    text = (compared / "out/comparison.csv").read_text()
    lines = list(csv.DictReader(text.splitlines()))
    assert {line["model"] for line in lines} == set(rows)
    shown = (compared / "out/comparison.md").read_text()
    assert all(COLUMNS[name].heading in shown for name in ("class-mean", "tow"))
    for name in ("comparison.tex", "comparison.svg", "comparison.pdf"):
        assert (compared / "out" / name).stat().st_size > 0


@pytest.mark.long
def test_a_method_added_later_finds_all_models(compared, monkeypatch):
    def refuse(*_, **__):
        pytest.fail("a model was trained again")

    monkeypatch.setattr(cells, "train_network", refuse)
    before = {path.name for path in (compared / "cache/models").iterdir()}
    where = "--cache", str(compared / "cache"), "--out", str(compared / "more")
    methods = "--methods", "mask-head", "kodge", "mask-head+projected"
    assert cli.main([*QUICK, *where, *methods]) == 0
    after = {path.name for path in (compared / "cache/models").iterdir()}
    # Of the new row one for each training seed, each with its card.
    assert len(after - before) == 4
    ours, theirs = (_rows_of(compared / name) for name in ("out", "more"))
    assert theirs["kodge"] == ours["kodge"]
    # Biases have no moment: what it did to one is taken back.
    before, after = theirs["original"], theirs["mask-head+projected"]
    for name in ("accuracy/forgotten", "accuracy/retained", "class-mean"):
        assert after[name]["mean"] == pytest.approx(before[name]["mean"], abs=1e-9)


@pytest.mark.long
def test_other_seeds_and_data_are_other_models(compared, tmp_path, monkeypatch):
    asked = []

    def note(settings, splits, data, progress, **given):
        asked.append(len(data))
        raise KeyboardInterrupt

    monkeypatch.setattr(cells, "train_network", note)
    where = "--cache", str(compared / "cache"), "--out", str(tmp_path / "out")
    for flags in (["--split-seed", "5"], ["--recipe.epochs", "2"], ["--seeds", "7"]):
        assert (
            cli.main([*QUICK, *where, "--methods", "kodge", *flags, "--overwrite"])
            == 130
        )
    assert len(asked) == 3


@pytest.mark.long
def test_what_was_made_before_a_kill_is_not_made_again(tmp_path):
    where = "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")
    flags = [*QUICK, *where, "--methods", "mask-head", "kodge"]
    command = [sys.executable, "-m", "jaxunlearn", *flags]

    def records():
        return sorted((tmp_path / "cache/records").glob("[!.]*.json"))

    kill_at(
        command, tmp_path, environment(tmp_path / "xla"), lambda: len(records()) >= 3
    )
    assert not (tmp_path / "out").exists()
    before = {path: path.stat().st_mtime_ns for path in records()}
    assert cli.main(flags) == 0
    after = {path: path.stat().st_mtime_ns for path in records()}
    assert len(after) > len(before)
    assert {path: after[path] for path in before} == before
    assert (tmp_path / "out/comparison.json").is_file()


@pytest.mark.long
def test_a_damaged_model_is_made_again(compared, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(compared / "cache", cache)
    record = json.loads((compared / "out/comparison.json").read_text())
    wrong = cache / "models" / f"{record['models'][0]['file']}.safetensors"
    wrong.write_bytes(wrong.read_bytes()[:-8] + bytes(8))
    where = "--cache", str(cache), "--out", str(tmp_path / "out")
    assert cli.main([*QUICK, *where, "--methods", "mask-head", "kodge"]) == 0
    old, new = _rows_of(compared / "out"), _rows_of(tmp_path / "out")
    assert [r["class-mean"] for r in old.values()] == [
        r["class-mean"] for r in new.values()
    ]
