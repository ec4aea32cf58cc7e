"""Damaged files end in a sentence, or give what was written."""

import collections
import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from normalised import drawn
from safetensors.numpy import save_file

import jaxunlearn as ju
from jaxunlearn import models
from jaxunlearn.models.files import Card, load_classifier, read_card
from jaxunlearn.models.shapes import nested, variable_shapes
from jaxunlearn.models.torch_weights import from_torch, to_torch
from jaxunlearn.serialization import from_dict, read_json, write_json

SHAPE = (8, 8, 3)
CARD = Card(
    model="allcnn",
    num_classes=3,
    options={"width": 0.02},
    image_shape=SHAPE,
    class_names=("ant", "bee", "cat"),
)


@functools.cache
def network():
    model = models.create("allcnn", num_classes=3, width=0.02)
    return model, nested(drawn(variable_shapes(model, SHAPE), np.float32))


def apply(params, state, images):
    return images.mean((1, 2)) @ params["kernel"] + params["bias"]


FUNCTION = ju.Function(apply, {"kernel": jnp.ones((3, 4)), "bias": jnp.arange(4.0)})


def read_weights(path):
    return from_torch(network()[0], path, image_shape=SHAPE)


def read_function(path):
    return ju.load(path, FUNCTION).params


def read_known(path):
    kept, card = load_classifier(path)
    assert read_card(path) == (card, kept.preprocess)
    return ju.thaw(kept), kept.preprocess, card


def read_record(path):
    return from_dict(Card, read_json(path), f"{path}: ")


def write_known(path):
    kept = ju.freeze(*network(), preprocess=ju.datasets.preprocess("digits"))
    options = {"image_shape": SHAPE, "class_names": list(CARD.class_names)}
    ju.save(path, kept, **options)


def write_torch(path, *, zipped):
    torch = pytest.importorskip("torch")
    weights = {n: torch.from_numpy(a) for n, a in to_torch(*network()).items()}
    kept = {"net": weights, "epoch": 3, "acc": np.float64(0.9)}
    torch.save(kept, path, _use_new_zipfile_serialization=zipped)


# Name of a file: how it is written and read, and whether a checksum guards its numbers.
KINDS = {
    "known.safetensors": (write_known, read_known, True),
    "own.safetensors": (
        lambda path: ju.save(path, ju.freeze(FUNCTION)),
        read_function,
        True,
    ),
    "archive.pt": (functools.partial(write_torch, zipped=True), read_weights, True),
    "legacy.pth.tar": (
        functools.partial(write_torch, zipped=False),
        read_weights,
        False,
    ),
    "foreign.safetensors": (
        lambda path: save_file(to_torch(*network()), path),
        read_weights,
        False,
    ),
    "card.json": (lambda path: write_json(path, CARD), read_record, False),
}


def flip(content, rng):
    for place in rng.integers(len(content), size=rng.integers(1, 5)):
        content[place] ^= 1 << rng.integers(8)
    return content


def flip_early(content, rng):
    """Where headers are."""
    content[rng.integers(min(len(content), 2000))] ^= 1 << rng.integers(8)
    return content


def flip_late(content, rng):
    """Where the directory of an archive is."""
    content[-1 - rng.integers(min(len(content), 2000))] ^= 1 << rng.integers(8)
    return content


def cut(content, rng):
    return content[: rng.integers(len(content))]


def lose(content, rng):
    start, length = rng.integers(len(content)), rng.integers(1, 100)
    return content[:start] + content[start + length :]


def blank(content, rng):
    start, length = rng.integers(len(content)), rng.integers(1, 100)
    length = len(content[start : start + length])
    return content[:start] + bytes(length) + content[start + length :]


def swap(content, rng):
    one, other = sorted(rng.integers(len(content) - 64, size=2))
    pieces = content[one : one + 64], content[other : other + 64]
    content[one : one + 64], content[other : other + 64] = reversed(pieces)
    return content


def append(content, rng):
    return content + rng.bytes(rng.integers(1, 50))


def header(content, rng):
    """Of safetensors: another type, shape, place or name of a tensor, another card."""
    (length,) = struct.unpack("<Q", content[:8])
    if length > len(content):
        return flip_early(content, rng)
    entries = json.loads(content[8 : 8 + length])
    one, other = rng.choice([n for n in entries if n != "__metadata__"], size=2)
    field = rng.choice(["dtype", "shape", "data_offsets", "name", "card", "length"])
    if field == "name":
        entries[one], entries[other] = entries[other], entries[one]
    elif field == "dtype":
        entries[one]["dtype"] = str(rng.choice(["I32", "F16", "BF16", "F64", "X"]))
    elif field == "card":
        entries["__metadata__"] = {"jaxunlearn": '{"model": "vit", "options": []}'}
    elif field == "length":
        return bytearray(struct.pack("<Q", int(rng.integers(2**63)))) + content[8:]
    else:
        entries[one][field] = entries[other][field]
    text = json.dumps(entries).encode()
    return bytearray(struct.pack("<Q", len(text))) + text + content[8 + length :]


DAMAGES = [flip, flip_early, flip_late, cut, lose, blank, swap, append, header]


def outcome(path, read, original):
    """What comes of a file: the same, other numbers, a sentence, or worse."""
    try:
        value = read(path)
    except (ValueError, TypeError, OSError) as error:
        ours = len(str(error)) <= 1000 and path.name in str(error)
        return "sentence" if ours else f"raw {type(error).__name__}: {error}"
    except Exception as error:
        return f"raw {type(error).__name__}: {error}"
    leaves, wanted = jax.tree.leaves(value), jax.tree.leaves(original)
    same = jax.tree.structure(value) == jax.tree.structure(original) and all(
        np.array_equal(one, other) for one, other in zip(leaves, wanted, strict=True)
    )
    return "same" if same else "other numbers"


def outcomes(folder, kinds, count, seed=0):
    """How often what came of `count` damaged files of each kind."""
    rng, found = np.random.default_rng(seed), collections.Counter()
    for name in kinds:
        write, read, guarded = KINDS[name]
        write(folder / name)
        whole, original = (folder / name).read_bytes(), read(folder / name)
        for number in range(count):
            damage = DAMAGES[number % (len(DAMAGES) - ("safetensors" not in name))]
            path = folder / f"{damage.__name__}-{number}-{name}"
            path.write_bytes(damage(bytearray(whole), rng))
            came = outcome(path, read, original)
            found[
                name, came if guarded or came != "other numbers" else "unguarded"
            ] += 1
            path.unlink()
    return found


@pytest.mark.long
def test_damaged_files_end_in_a_sentence_or_give_what_was_written(tmp_path):
    found = outcomes(tmp_path, [n for n in KINDS if ".p" not in n], 15)
    assert {came for _, came in found} <= {"same", "sentence", "unguarded"}, found
    assert sum(n for (_, came), n in found.items() if came == "sentence") > 40


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_torch_do_so_too(tmp_path):
    found = outcomes(tmp_path, ["archive.pt", "legacy.pth.tar"], 40)
    assert {came for _, came in found} <= {"same", "sentence", "unguarded"}, found
