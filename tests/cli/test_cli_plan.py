"""`jaxunlearn plan`, as a person types it."""

import json

import pytest

from jaxunlearn.cli import main

DIGITS = ["plan", "--dataset", "digits"]


def test_layers_and_stages_are_printed(capsys):
    assert main([*DIGITS, "--protected-fraction", "0.25"]) == 0
    printed = capsys.readouterr().out
    assert "Conv_1/kernel    conv    1   144    32     16     36   82.9 kB" in printed
    for stage in ("inversion", "statistics", "subspaces", "steps"):
        assert f"\n  {stage}" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_json_holds_the_same_and_counts_the_data_set(capsys):
    assert main([*DIGITS, "--method", "unsc", "--batch-size", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in found["stages"]] == [
        "statistics",
        "subspaces",
        "steps",
    ]
    # Nine retained classes of some 115 images each.
    assert found["stages"][0]["runs"] == 27
    assert found["stages"][1]["runs"] == 9
    assert found["layers"][0]["rank"] is None
    assert found["stages"][0]["seconds"] is None


def test_seconds_are_measured_on_demand(capsys):
    small = ["--options", "width=2", "--steps", "4", "--step-batch-size", "8"]
    assert main([*DIGITS, *small, "--method", "unprojected", "--measure"]) == 0
    printed = capsys.readouterr().out
    assert "Compilation comes on top of the seconds." in printed
    (steps,) = [row.split() for row in printed.splitlines() if "steps" in row]
    assert steps[:2] == ["steps", "4"]
    assert float(steps[-1]) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --dataset, or --image-shape and --num-classes"),
        (["--dataset", "digits", "--model", "vgg"], "--model must be one of 'alexnet'"),
        (["--dataset", "digits", "--forget", "10"], "--forget"),
        (
            ["--dataset", "digits", "--method", "retrain"],
            "--method must be one of 'covarnav'",
        ),
        (["--dataset", "digits", "--rank", "2", "--energy", "0.5"], "exactly one"),
        (["--checkpoint", "no.safetensors"], "--checkpoint takes a .safetensors file"),
        (
            ["--image-shape", "8", "8", "1", "--num-classes", "3", "--method", "unsc"],
            "--images",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(arguments, words, capsys):
    assert main(["plan", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.long
def test_large_networks_are_planned_from_shapes_alone(capsys):
    size = ["--image-shape", "224", "224", "3", "--num-classes", "1000"]
    options = ["--model", "vit", "--options", "size=base", "patch=16", "depth=2"]
    assert main(["plan", *size, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    layers = {layer["path"]: layer for layer in found["layers"]}
    assert layers["block1/fc2/kernel"]["d"] == 3072
    assert layers["block1/fc2/kernel"]["rows"] == 197
    assert found["stages"][1]["bytes"] > 1e9
