"""Data, requests to forget, and splitting by class."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.tasks import (
    Data,
    Task,
    check_classes,
    class_numbers,
    split_by_class,
    split_by_index,
)


def images(n, shape=(4, 4, 1)):
    """Every image is filled with its own number."""
    return np.broadcast_to(
        np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1), (n, *shape)
    )


def data(*labels, shape=(4, 4, 1)):
    return Data(images(len(labels), shape), list(labels))


def test_labels_are_kept_on_the_host_as_int32_and_images_where_they_are():
    on_device = jnp.zeros((2, 4, 4, 1))
    for labels in ([1, 2], np.array([1, 2], np.uint8), jnp.array([1, 2])):
        made = Data(on_device, labels)
        assert made.images is on_device
        assert type(made.labels) is np.ndarray
        assert made.labels.dtype == np.int32
        assert made.labels.tolist() == [1, 2]


def test_data_may_be_empty():
    assert len(Data(np.zeros((0, 4, 4, 1), np.uint8), [])) == 0
    assert len(data(3, 3, 1)) == 3


@pytest.mark.parametrize("module", [np, jnp])
@pytest.mark.parametrize("pixel", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_refused(module, pixel):
    bad = module.asarray(np.where(images(3) == 1, pixel, 0.0).astype(np.float32))
    with pytest.raises(ValueError, match="NaN or infinite pixels.*index"):
        Data(bad, [0, 1, 2])


@pytest.mark.parametrize(
    ("pixels", "labels", "error", "sentence"),
    [
        (images(3)[0], [0], ValueError, r"\[n, h, w, c\]; their shape is \(4, 4, 1\)"),
        (images(3).astype(int), [0, 1, 2], TypeError, "uint8 or floating .* int64"),
        (images(3) > 1, [0, 1, 2], TypeError, "uint8 or floating .* bool"),
        (images(3), [0, 1], ValueError, r"of the 3 images.* their shape is \(2,\)"),
        (images(3), [[0], [1], [2]], ValueError, r"their shape is \(3, 1\)"),
        (images(3), 1, ValueError, r"their shape is \(\)"),
        (images(3), [0.0, 1.0, 2.0], TypeError, "integers; they are float64"),
        (images(3), [True, False, True], TypeError, "integers; they are bool"),
        (images(3), [0, -2, 1], ValueError, "0 on; they range from -2 to 1.*index 1"),
        (images(3), [0, 2**32 + 3, 1], ValueError, "to 4294967299, .* index 1"),
        (
            images(3),
            np.array([0, 2**64 - 1, 1], np.uint64),
            ValueError,
            "615, .*index 1",
        ),
        (images(3), [0, 2**31 - 1, 1], ValueError, "0 to 2147483646; .* index 1"),
        (images(3), [0, 2**70, 1], TypeError, "labels must be one array of .* 64 bits"),
        (images(3), [[0], [1, 2], [3]], TypeError, "labels must be .* inhomogeneous"),
        (images(3), [[0, 1], [1, 0], [1, 0]], ValueError, r"argmax\(axis=1\)"),
        (images(3), ["a", "b", "c"], TypeError, "numbers .*'c'. is a list"),
        (
            images(3),
            np.ma.array([0, 1, 2], mask=[0, 1, 0]),
            ValueError,
            "labels are a masked array with 1 masked entries",
        ),
        (np.ma.masked_equal(images(3), 1), [0, 1, 2], ValueError, "with 16 masked"),
        (None, [0], TypeError, "images must be one array of .*; None is a NoneType"),
        (["a.png"], [0], TypeError, "numbers of .*'a.png'. is a list"),
        (images(3, (0, 4, 1)), [0, 1, 2], ValueError, "images must have pixels"),
        (images(3).astype(np.longdouble), [0, 1, 2], TypeError, "at most 64 bits"),
        (images(3).astype(complex), [0, 1, 2], TypeError, "are complex128"),
    ],
)
def test_wrong_data_are_refused(pixels, labels, error, sentence):
    with pytest.raises(error, match=sentence):
        Data(pixels, labels)


def test_arrays_of_another_byte_order_are_read():
    pixels = np.linspace(0, 1, 48).reshape(3, 4, 4, 1)
    made = Data(pixels.astype(">f4"), np.array([5, 6, 7], ">i8"))
    assert made.labels.tolist() == [5, 6, 7]
    np.testing.assert_array_equal(jnp.asarray(made.images), pixels.astype(np.float32))


def test_tensors_are_read_wherever_they_are():
    torch = pytest.importorskip("torch")
    pixels = torch.rand(2, 4, 4, 1, requires_grad=True)
    made = Data(pixels, torch.tensor([3, 5]))
    assert made.labels.tolist() == [3, 5]
    np.testing.assert_array_equal(made.images, pixels.detach().numpy())
    with pytest.raises(TypeError, match="images must be one array of .* BFloat16"):
        Data(pixels.bfloat16(), [0, 1])


def test_masked_arrays_without_a_masked_entry_are_arrays():
    made = Data(np.ma.array(images(2)), np.ma.array([0, 1]))
    assert type(made.images) is np.ndarray
    assert made.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "other",
    [(images(2), [0, 1]), None, [0, 1], images(2), jnp.asarray(images(2)), "cats"],
)
def test_what_is_no_data_is_refused_without_its_pixels(other):
    calls = [
        lambda: Task(other, num_classes=3),
        lambda: Task(data(0), other, num_classes=3),
        lambda: split_by_class(other, [0]),
        lambda: split_by_index(other, [0]),
    ]
    for call in calls[: 1 if other is None else None]:
        with pytest.raises(TypeError, match="must be a Data; it is a ") as error:
            call()
        assert len(str(error.value)) < 300


def test_sentences_about_many_classes_stay_short():
    many = Data(images(3), [0, 1, 2]), range(1000), 2000
    with pytest.raises(ValueError, match="names sample|No sample") as error:
        split_by_class(many[0], range(1000))
    assert len(str(error.value)) < 1000
    with pytest.raises(ValueError, match="must have at most 1048576 entries"):
        check_classes(range(10**9), 10**9)
    with pytest.raises(ValueError, match="class 1180591620717411303424, which"):
        check_classes([2**70], 10)
    with pytest.raises(ValueError, match="num_classes must be at most 2147483647"):
        check_classes([0], 2**70)


def test_sets_whose_classes_are_called_differently_are_refused():
    forget = Data(images(1), [1], ["ant", "bee"])
    retain = Data(images(1), [0], ["bee", "ant"])
    with pytest.raises(ValueError, match=r"\('ant', 'bee'\) and .* \('bee', 'ant'\)"):
        Task(forget, retain, [1], num_classes=2)


def test_a_train_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="train must be a function .* it is 'fit'"):
        Task(data(1), train="fit", num_classes=2)


def test_a_task_keeps_its_classes_as_a_tuple_of_integers():
    for classes in ([3, 1], (3, 1), np.array([3, 1]), jnp.array([3, 1])):
        task = Task(data(1, 3), data(0, 2), classes, num_classes=4)
        assert task.forget_classes == (3, 1)
        assert all(type(c) is int for c in task.forget_classes)
    assert task.train is None


def test_a_task_without_classes_forgets_samples_of_any_class():
    task = Task(data(0, 3, 3), data(3, 0, 1), num_classes=4)
    assert task.forget_classes == ()


def test_a_task_may_have_no_retain_set_or_an_empty_one():
    assert Task(data(3), forget_classes=[3], num_classes=4).retain is None
    assert len(Task(data(3), data(), [3], num_classes=4).retain) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ((data(1), None, [1.0]), TypeError, "must hold integers; 1.0 is a float"),
        ((data(1), None, ["1"]), TypeError, "must hold integers; '1' is a str"),
        ((data(1), None, [True]), TypeError, "must hold integers; True is a bool"),
        ((data(1), None, 1), TypeError, r"a sequence of class numbers.* it is 1\."),
        ((data(1), None, [-1]), ValueError, "names class -1, which does not exist"),
        ((data(1), None, [1, 4]), ValueError, "class 4.* the classes are 0 to 3"),
        ((data(1), None, [1, 1]), ValueError, r"each class once; it is \[1, 1\]"),
        ((data(1), None, [0, 1, 2, 3]), ValueError, "all 4 classes: leave at least"),
        ((data(), None, [1]), ValueError, "forget set is empty"),
        ((data(1, 2, 0), None, [1]), ValueError, r"of classes 0, 2, which .* \[1\]"),
        ((data(1), data(0, 1), [1]), ValueError, "retain set holds .* of class 1,"),
        (
            (data(4), None),
            ValueError,
            "forget set must .* 0 to 3; .* to 4",
        ),
        ((data(1), data(7), [1]), ValueError, "retain set must be classes.* to 7"),
        (
            (data(1), data(0, shape=(5, 4, 1)), [1]),
            ValueError,
            r"\(4, 4, 1\) and those of the retain set \(5, 4, 1\)",
        ),
    ],
)
def test_wrong_tasks_are_refused(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        Task(*arguments, num_classes=4)


@pytest.mark.parametrize(
    ("number", "error", "sentence"),
    [
        (2.5, TypeError, "num_classes must be an integer; it is 2.5"),
        (True, TypeError, "num_classes must be an integer; it is True"),
        (0, ValueError, "num_classes must be at least 1; it is 0"),
    ],
)
def test_the_number_of_classes_is_a_positive_integer(number, error, sentence):
    with pytest.raises(error, match=sentence):
        check_classes([0], number)


@pytest.mark.parametrize("module", [np, jnp])
def test_splitting_by_class_takes_each_sample_once_and_keeps_the_order(module):
    labels = [2, 0, 1, 2, 1, 0, 2]
    whole = Data(module.asarray(images(7)), labels)
    forget, retain = split_by_class(whole, [2, 0])
    assert forget.labels.tolist() == [2, 0, 2, 0, 2]
    assert retain.labels.tolist() == [1, 1]
    assert forget.images[:, 0, 0, 0].tolist() == [0, 1, 3, 5, 6]
    assert retain.images[:, 0, 0, 0].tolist() == [2, 4]
    assert type(forget.images) is type(whole.images)


def test_a_split_makes_a_task():
    forget, retain = split_by_class(data(2, 0, 1, 2), [2])
    task = Task(forget, retain, [2], num_classes=3)
    assert (len(task.forget), len(task.retain)) == (2, 2)


@pytest.mark.parametrize(
    ("classes", "error", "sentence"),
    [
        ([3], ValueError, r"belongs to class 3, .* its labels are \[0, 1, 2\]"),
        ([0, -1], ValueError, r"belongs to class -1, .* its labels are \[0, 1, 2\]"),
        ([3, 9], ValueError, "belongs to classes 3, 9,"),
        ([0, 1, 2], ValueError, r"every class of the data, \[0, 1, 2\]"),
        ([], ValueError, "forget_classes is empty"),
        ([0.0], TypeError, "must hold integers; 0.0 is a float"),
        ([1.7], TypeError, "must hold integers; 1.7 is a float"),
        ([True], TypeError, "must hold integers; True is a bool"),
        ("37", TypeError, "a sequence of class numbers.* it is '37'"),
        ([1, 1], ValueError, r"must name each class once; it is \[1, 1\]"),
    ],
)
def test_wrong_splits_are_refused(classes, error, sentence):
    with pytest.raises(error, match=sentence):
        split_by_class(data(0, 1, 2, 2), classes)


@pytest.mark.parametrize(
    ("names", "error", "sentence"),
    [
        (["ant", 3], TypeError, "class_names must be strings; 3 is a int"),
        (["ant", "ant"], ValueError, "'ant' is there twice"),
        (["ant"], ValueError, "names 1 classes, and the labels go up to 1"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(names, error, sentence):
    with pytest.raises(error, match=sentence):
        Data(images(2), [0, 1], names)


def test_class_names_travel_through_a_split():
    data = Data(images(2), [0, 1], ["ant", "bee"])
    parts = split_by_class(data, [1])
    assert [part.class_names for part in parts] == [("ant", "bee")] * 2


INSECTS = ("ant", "bee", "cicada")
NUMBERED = ("10", "20", "30")


@pytest.mark.parametrize(
    ("requested", "names", "numbers"),
    [
        ([2, 0], None, (2, 0)),
        (["2", np.int64(0)], INSECTS, (2, 0)),
        (["bee", "2"], INSECTS, (1, 2)),
        (["name:bee", "number:2"], INSECTS, (1, 2)),
        (["name:20", "number:2"], NUMBERED, (1, 2)),
        (["01", "10"], [f"{i:02}" for i in range(12)], (1, 10)),
        (["fruit fly: wild"], ["fruit fly: wild", "bee"], (0,)),
        ([], INSECTS, ()),
    ],
)
def test_classes_are_asked_for_by_number_or_name(requested, names, numbers):
    assert class_numbers(requested, names) == numbers


@pytest.mark.parametrize(
    ("requested", "names", "error", "sentence"),
    [
        (
            [2],
            NUMBERED,
            ValueError,
            r"number:2, class 2 \('30'\) or name:2, of .*",
        ),
        (["20"], NUMBERED, ValueError, r"number:20, of .* name:20, class 1 \('20'\)"),
        (["1"], ["01", "1"], ValueError, r"number:1, class 1 .* or name:1, class 1"),
        (["wasp"], INSECTS, ValueError, "'wasp', .* are ant, bee, cicada"),
        (["Bee"], INSECTS, ValueError, "Is 'bee' meant"),
        (["bee"], None, ValueError, "they have numbers alone"),
        ([3], INSECTS, ValueError, "class 3, which does not exist: .* 0 to 2"),
        ([-1], None, ValueError, "class -1, which does not exist: .* from 0 on"),
        (["bee", 1], INSECTS, ValueError, r"class 1 \('bee'\) twice"),
        ([1.0], INSECTS, TypeError, "numbers or names; 1.0 is a float"),
        ([True], INSECTS, TypeError, "numbers or names; True is a bool"),
        ("37", INSECTS, TypeError, "a sequence of class numbers.* it is '37'"),
        (None, INSECTS, TypeError, "a sequence of class numbers.* it is None"),
        (["bee"], [3], TypeError, "class_names must be strings; 3 is a int"),
        (["bee"], ["bee", "bee"], ValueError, "'bee' is there twice"),
    ],
)
def test_classes_that_are_not_clear_are_refused(requested, names, error, sentence):
    with pytest.raises(error, match=sentence):
        class_numbers(requested, names, name="--forget")


@pytest.mark.parametrize("module", [np, jnp])
def test_splitting_by_index_takes_each_sample_once_and_keeps_the_order(module):
    whole = Data(module.asarray(images(5)), [2, 0, 1, 2, 1], ["ant", "bee", "cicada"])
    for indices in ([3, 0], np.array([3, 0], np.uint64), jnp.array([3, 0])):
        forget, retain = split_by_index(whole, indices)
        assert forget.images[:, 0, 0, 0].tolist() == [0, 3]
        assert retain.images[:, 0, 0, 0].tolist() == [1, 2, 4]
        assert (forget.labels.tolist(), retain.labels.tolist()) == ([2, 2], [0, 1, 1])
        assert forget.class_names == retain.class_names == ("ant", "bee", "cicada")
    task = ju.Task(*ju.split_by_index(whole, [3, 0]), num_classes=3)
    assert task.forget_classes == ()


@pytest.mark.parametrize(
    ("indices", "error", "sentence"),
    [
        ([0, 5], ValueError, "name sample 5, which does not exist: .* 0 to 4"),
        ([-1], ValueError, "name sample -1"),
        ([2**70], TypeError, "indices must be one array of numbers"),
        ([1, 3, 1], ValueError, "each sample once; 1 is there twice"),
        ([], ValueError, r"at least one place, \[n\]; their shape is \(0,\)"),
        ([[0], [1]], ValueError, r"their shape is \(2, 1\)"),
        (3, ValueError, r"their shape is \(\)"),
        ([0.0], TypeError, "indices must be integers; they are float64"),
        ([True, False, False, True, False], TypeError, "integers; they are bool"),
        (range(5), ValueError, "name all 5 samples: leave at least one"),
    ],
)
def test_wrong_indices_are_refused(indices, error, sentence):
    with pytest.raises(error, match=sentence):
        split_by_index(data(0, 1, 2, 0, 1), indices)
