"""`jaxunlearn report`: what it reads, what it writes, what it refuses."""

import csv
import html
import json

import numpy as np
import pytest
import reported
from reported import NAMES

from jaxunlearn.cli import main
from jaxunlearn.cli.pieces import Pieces
from jaxunlearn.cli.report_audits import _listed_cells
from jaxunlearn.cli.report_folders import read_folder
from jaxunlearn.cli.report_inputs import Asked
from jaxunlearn.cli.report_tables import of_run, single
from jaxunlearn.serialization import to_dict, write_json


@pytest.fixture
def run(tmp_path):
    reported.write_run(tmp_path / "run")
    return tmp_path / "run"


def report(folder, *flags):
    return main(["report", str(folder), "--no-compute", *map(str, flags)])


def test_gap_floor_and_noise_of_a_run_are_those_of_its_audit():
    rows, verdicts = of_run(
        {
            "classifiers": {
                name: {"test": {}, "seconds": {"steps": 1.0}, "samples_read": {}}
                for name in ("original", "masked", "retrained")
            },
            "audits": {"masked": reported.AUDIT},
        }
    )
    assert verdicts == {"masked": "output-level only"}
    probe = rows["masked"]["probe"]
    assert (probe.mean, probe.gap, probe.floor, probe.within) == (80, 22.5, 6, False)
    assert rows["original"]["probe"].gap == 27.5
    assert rows["retrained"]["probe"].mean == 57.5
    assert rows["retrained"]["probe"].gap is None
    assert rows["masked"]["relearn"].bound == ">"
    assert rows["masked"]["share"].mean == 1.0


def test_a_run_becomes_a_page_and_tables(run, capsys):
    assert report(run, "--formats", "csv", "md", "tex") == 0
    assert "report.html" in capsys.readouterr().out
    text = (run / "report.html").read_text()
    assert "output-level only" in text
    assert "Outside the noise: probe +22.5, relearn +85. Not made: class-mean." in text
    assert "--no-compute" in text
    assert 'aria-label="Test accuracy of each class and model' in text
    rows = list(csv.DictReader((run / "report.csv").read_text().splitlines()))
    probe = [r for r in rows if (r["model"], r["measure"]) == ("masked", "probe")]
    assert [float(probe[0][n]) for n in ("mean", "gap", "floor")] == [80, 22.5, 6]
    assert "(+22.5)" in (run / "report.md").read_text()
    assert r"\toprule" in (run / "report.tex").read_text()


def test_a_page_that_is_there_stays(run, capsys):
    (run / "report.html").write_text("mine")
    assert report(run) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (run / "report.html").read_text() == "mine"
    elsewhere = run.parent / "new" / "page.html"
    assert report(run, "--out", elsewhere) == 0
    assert elsewhere.is_file()
    assert not list(run.parent.rglob(".*"))  # no lock, and nothing half written


def test_a_run_without_audits_has_gaps_to_its_retrained_model(run):
    metrics = reported.write_run(run, audits=None)
    rows, verdicts = of_run(metrics)
    tests = {n: r["test"] for n, r in metrics["classifiers"].items()}
    gap = rows["masked"]["accuracy/retained"].gap
    wanted = tests["masked"]["retained"] - tests["retrained"]["retained"]
    assert gap == pytest.approx(wanted)
    assert not verdicts
    assert report(run) == 0
    assert "No verdict" in (run / "report.html").read_text()


@pytest.mark.parametrize("where", ["folder", "file"])
def test_the_json_of_an_audit_becomes_a_page(tmp_path, where):
    write_json(tmp_path / "unsc.json", reported.AUDIT)
    place = tmp_path if where == "folder" else tmp_path / "unsc.json"
    assert report(place) == 0
    text = (tmp_path / "report.html").read_text()
    assert "Audit of unsc" in text
    assert "output-level only" in text


def test_a_sweep_becomes_a_row_for_each_request(tmp_path):
    run = reported.write_run(tmp_path / "run")["classifiers"]
    before = {name: run["original"]["test"][name] for name in ("retained", "forgotten")}
    record = {"forget": [1], "test": run["masked"]["test"], "before": before}
    record |= {"retrained": run["retrained"]["test"], **reported.LAYERS}
    other = record | {"forget": [0, 2], "retrained": None}
    settings = {"dataset": "digits", "model": "smallcnn", "method": "unsc", "seed": 0}
    common = ("samples", "versions", "device", "devices", "learning_rate_rule")
    shared = json.loads((tmp_path / "run" / "metrics.json").read_text())
    stored = {"settings": settings, "requests": [record, other]}
    (tmp_path / "sweep").mkdir()
    stored |= {name: shared[name] for name in common}
    write_json(tmp_path / "sweep" / "sweep.json", stored)
    assert report(tmp_path / "sweep", "--formats", "csv") == 0
    text = (tmp_path / "sweep" / "report.html").read_text()
    row = f"0: {NAMES[0]}, 2: {NAMES[2]}"
    assert f'<th scope="row">{html.escape(row)}</th>' in text
    assert "--request" in text
    assert report(tmp_path / "sweep", "--request", 3, "--overwrite") == 2


def test_a_comparison_shows_its_first_seed_and_all_its_tables(tmp_path):
    reported.write_run(tmp_path / "run")
    run = json.loads((tmp_path / "run" / "metrics.json").read_text())
    cache, made = Pieces(tmp_path / "cache"), []
    for model, seed in (("masked", 7), ("masked", 8), ("original", 7), ("original", 8)):
        made.append({"forget": "1", "training_seed": seed, "model": model})
        made[-1]["file"] = f"{model}-{seed}"
        record = run["classifiers"][model]
        cache.piece(f"records/{model}-{seed}.json", lambda record=record: record)
    for seed in (7, 8, 9):
        about = {"forget": "1", "training_seed": seed, "model": "retrained"}
        made.append(about | {"file": f"retrained-{seed}"})
    probe = single(80.0, 22.5, 6.0, within=False)
    rows = to_dict({name: {"probe": probe} for name in ("original", "masked")})
    table = {"forget": "1", "rows": rows, "verdicts": {"masked": "not forgotten"}}
    settings = {"dataset": "digits", "model": "smallcnn", "seeds": [7, 8, 9]}
    stored = {"settings": settings | {"audit_seed": 0}, "models": made}
    stored |= {"tables": [table], "cache": str(cache.work)}
    common = ("samples", "versions", "device", "devices")
    stored |= {name: run[name] for name in common}
    (tmp_path / "compare").mkdir()
    write_json(tmp_path / "compare" / "comparison.json", stored)
    place = tmp_path / "compare"
    contents = read_folder(place, Asked(compute=False)).contents
    # A model that is not in the cache any more, and of which nothing is known, is none.
    assert [model.name for model in contents.models] == ["original", "masked"]
    listed = _listed_cells(made, cache.work, "1", [7, 8, 9])
    names = ["original", "masked", "retrained", "retrained, seed 8"]
    assert [one.name for one in listed] == names
    assert [one.role for one in listed[2:]] == ["retrained", "retrained"]
    assert listed[1].file == cache.work / "models" / "masked-7.safetensors"
    assert report(place) == 0
    text = (place / "report.html").read_text()
    assert "training seed 7" in text
    assert "80.0" in text
    assert "surviving share" in text


def damaged(folder):
    reported.write_run(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["classifiers"]
    write_json(folder / "metrics.json", metrics)


def no_json(folder):
    reported.write_run(folder)
    (folder / "metrics.json").write_text("{")


def bad_proxies(folder):
    reported.write_run(folder)
    (folder / "proxies.npz").write_bytes(b"PK")


def unfinished(folder):
    reported.write_run(folder.with_name("run.partial"))
    (folder.with_name("run.partial") / "request.json").write_text("{}")


@pytest.mark.parametrize(
    ("prepare", "flags", "sentence"),
    [
        (lambda folder: None, (), "There is no"),
        (lambda folder: folder.mkdir(), (), "holds none of metrics.json"),
        (unfinished, (), "is unfinished"),
        (damaged, (), "lacks what the command writes there"),
        (no_json, (), "is no JSON"),
        (bad_proxies, (), "proxies.npz is damaged"),
        (reported.write_run, ("--samples", "0"), "--samples must be at least 1"),
        (reported.write_run, ("--out", "page.txt"), "--out must end in .html"),
        (reported.write_run, ("--request", "2"), ""),
    ],
)
def test_what_cannot_be_reported_is_refused(tmp_path, capsys, prepare, flags, sentence):
    folder = tmp_path / "run"
    prepare(folder)
    assert report(folder, *flags) == (2 if sentence else 0)
    assert sentence in capsys.readouterr().err
    assert not sentence or not list(tmp_path.rglob("*.html"))


@pytest.mark.long
def test_runs_sweeps_comparisons_and_audits_are_reported(tmp_path, capsys):
    tiny = ["--options", "width=8", "--recipe.epochs", "6", "--learning-rates", "0.1"]
    methods = ["--methods", "covarnav", "unsc", "retrain"]
    quick = ["--covarnav.inversion-steps", "3", "--covarnav.steps", "3"]
    run, sweep = tmp_path / "run", tmp_path / "sweep"
    compare, cache = tmp_path / "compare", tmp_path / "cache"
    assert main(["run", *tiny, *methods, *quick, "--out", str(run)]) == 0
    given = ["--forget", "0", "1,2", "--save-classifiers", "--out", str(sweep)]
    assert main(["sweep", *tiny, *given, "--unsc.steps", "3"]) == 0
    given = ["--methods", "unsc", "--seeds", "0", "1", "--which", "accuracy", "probe"]
    given += ["--unsc.steps", "3", "--cache", str(cache), "--out", str(compare)]
    assert main(["compare", *tiny, *given]) == 0
    audit = tmp_path / "audit" / "unsc.json"
    audit.parent.mkdir()
    given = ["--checkpoint", str(run / "unsc.safetensors"), "--which", "accuracy"]
    assert main(["audit", *given, "--out", str(audit)]) == 0
    for folder in (run, sweep, compare, audit.parent):
        limits = ["--samples", "400", "--points", "60", "--relearn-steps", "3"]
        assert main(["report", str(folder), *limits]) == 0, folder
        text = (folder / "report.html").read_text()
        for name in ("classes", "confusion", "spectrum", "drift", "relearning"):
            content = text.partition(f'<section id="{name}"')[2]
            assert 'class="missing"' not in content.partition("</section>")[0], name
        for name in ("membership", "features"):
            content = text.partition(f'<section id="{name}"')[2]
            assert "<svg" in content.partition("</section>")[0], name
        assert len(text.encode()) < 3e6
    # Without its data or its classifiers, a folder still has its tables.
    assert "surviving share" in (compare / "report.html").read_text()
    (run / "unsc.safetensors").write_bytes(b"damaged")
    capsys.readouterr()
    assert main(["report", str(run), "--overwrite"]) == 2
    assert "unsc.safetensors" in capsys.readouterr().err
    for path in run.glob("*.safetensors"):
        path.unlink()
    assert main(["report", str(run), "--overwrite"]) == 0
    assert "keeps no classifiers" in (run / "report.html").read_text()


def test_numbers_that_are_not_known_are_blank(run):
    metrics = json.loads((run / "metrics.json").read_text())
    row = metrics["audits"]["masked"]["rows"][2]
    row |= {"unlearned": None, "gap": None, "floor": None, "within": None}
    write_json(run / "metrics.json", metrics)
    rows, _ = of_run(metrics)
    assert np.isnan(rows["masked"]["probe"].mean)
    assert report(run) == 0
    assert "nan" not in (run / "report.html").read_text().partition("<script>")[0]
