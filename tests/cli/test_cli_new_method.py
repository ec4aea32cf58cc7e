"""A method that is put into the table of methods, and what the commands make of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jaxunlearn

pytestmark = pytest.mark.long

# In a process of its own, since flags are made when the commands are imported.
SCRIPT = '''
import contextlib, dataclasses, io
import jax.numpy as jnp
from jaxunlearn import methods
from jaxunlearn.descent import Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lower:
    """Lower the logit of what is forgotten.

    Attributes:
      alpha: by how much.
    """

    tuned = "alpha"
    grid = (1e-3, 1e4, 1e5)
    alpha: float = 1.0

    def __call__(self, classifier, task, *, key):
        (head,) = (name for name in classifier.params if name.startswith("Dense"))
        layer = dict(classifier.params[head])
        forgotten = jnp.array(task.forget_classes)
        layer["bias"] = layer["bias"].at[forgotten].add(-self.alpha)
        return Result(classifier.replace(params={**classifier.params, head: layer}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nothing:
    """Do nothing, and tune nothing."""

    def __call__(self, classifier, task, *, key):
        return Result(classifier)


methods.by_name |= {"lower-logit": Lower, "nothing": Nothing}
from jaxunlearn.cli import main

small = ["--options", "width=8", "--recipe.epochs", "4"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
    main(["run", "--help-all"])
assert "--lower-logit.alpha FLOAT" in text.getvalue(), text.getvalue()
assert "by how much. (default: 1)" in text.getvalue()
run = ["run", *small, "--methods", "lower-logit", "nothing", "--out"]
assert main([*run, "tuned"]) == 0
assert main([*run, "given", "--lower-logit.alpha", "2"]) == 0
assert main([*run, "again", "--config", "tuned/config.json"]) == 0
assert main(["sweep", *small, "--method", "lower-logit", "--forget", "1", "2",
             "--out", "swept"]) == 0
assert main(["sweep", *small, "--method", "nothing", "--forget", "1", "2",
             "--out", "unswept"]) == 0
assert main(["unlearn", "--checkpoint", "tuned/original.safetensors", "--forget", "3",
             "--method", "lower-logit", "--out", "lowered.safetensors"]) == 0
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("commands")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=place,
        env={
            "PYTHONPATH": str(Path(jaxunlearn.__file__).parents[1]),
            "JAXUNLEARN_COMPILATION_CACHE": "off",
            "PATH": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return place, done.stdout


def read(path):
    return json.loads(path.read_text())


def test_its_field_is_chosen_from_its_own_grid(place):
    folder, printed = place
    record = read(folder / "tuned/metrics.json")["classifiers"]["lower-logit"]
    assert record["tuned"] == {"alpha": 1e4}
    assert [trial["alpha"] for trial in record["validation_trials"]] == [1e-3, 1e4, 1e5]
    assert record["test"]["forgotten"] == 0
    # What was asked for; and asked again, the same is chosen.
    assert read(folder / "tuned/config.json")["lower_logit"] == {"alpha": 1}
    again = read(folder / "again/metrics.json")["classifiers"]["lower-logit"]
    for name in ("tuned", "validation_trials"):
        assert again[name] == record[name]
    assert "alpha 10000" in printed


def test_what_is_given_by_hand_is_taken(place):
    record = read(place[0] / "given/metrics.json")["classifiers"]["lower-logit"]
    assert record["tuned"] == {"alpha": 2}
    assert record["validation_trials"] == []


def test_one_that_tunes_nothing_runs_too(place):
    records = read(place[0] / "tuned/metrics.json")["classifiers"]
    assert records["nothing"]["tuned"] == {}
    assert records["nothing"]["test"] == records["original"]["test"]
    assert len(read(place[0] / "unswept/sweep.json")["requests"]) == 2


def test_it_is_swept_and_takes_saved_classifiers(place):
    swept = read(place[0] / "swept/sweep.json")
    assert swept["alpha"] == 1e4
    assert [request["test"]["forgotten"] for request in swept["requests"]] == [0, 0]
    assert (place[0] / "lowered.safetensors").is_file()
