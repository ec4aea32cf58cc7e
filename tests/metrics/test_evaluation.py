"""Accuracies by class, against loops in plain Python, and how they are computed."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunlearn as ju
from jaxunlearn.metrics import class_accuracy, confusion_matrix, relative_change
from jaxunlearn.metrics.evaluation import evaluate, logits
from jaxunlearn.tasks import Data

K = 4
TRACES = []


class ReadOut(nn.Module):
    """Logits are the pixels themselves, so that any prediction can be asked for."""

    @nn.compact
    def __call__(self, images):
        TRACES.append(images.shape)
        scale = self.param("scale", nn.initializers.ones, (1, 1))
        return scale * images.reshape(len(images), -1)


def read_out(scale=1.0):
    return ju.freeze(ReadOut(), {"params": {"scale": jnp.full((1, 1), scale)}})


def asking_for(predictions, labels):
    """Data of which `read_out` predicts what is asked for."""
    pixels = np.eye(K, dtype=np.float32)[np.asarray(predictions, int)]
    return Data(pixels.reshape(-1, 1, 1, K), labels)


# Class 0: 3 of 4, class 1: 1 of 2, class 2: none there, class 3: 0 of 1.
LABELS = [0, 0, 1, 0, 3, 1, 0]
PREDICTIONS = [0, 1, 1, 0, 2, 3, 0]


def test_the_confusion_matrix_counts_pairs_with_the_true_class_first():
    expected = np.zeros((K, K), int)
    for y, p in zip(LABELS, PREDICTIONS, strict=True):
        expected[y, p] += 1
    evaluation = evaluate(read_out(), asking_for(PREDICTIONS, LABELS), [3])
    np.testing.assert_array_equal(evaluation.confusion, expected)
    small = np.array(LABELS, np.uint8), jnp.asarray(PREDICTIONS)
    np.testing.assert_array_equal(confusion_matrix(*small, K), expected)


def test_pairs_of_many_classes_do_not_overflow_a_small_integer_type():
    labels = np.array([200, 200], np.uint8)
    matrix = confusion_matrix(labels, np.array([100, 200], np.uint8), 256)
    assert matrix[200, 100] == matrix[200, 200] == 1
    assert matrix.sum() == 2


def test_means_over_classes_and_means_over_samples():
    evaluation = evaluate(read_out(), asking_for(PREDICTIONS, LABELS), [1, 3])
    np.testing.assert_allclose(evaluation.per_class, [75, 50, np.nan, 0])
    assert evaluation.retained == 75  # class 2 has no samples
    assert evaluation.forgotten == 25  # (50 + 0) / 2
    assert evaluation.retained_weighted == 75
    assert evaluation.forgotten_weighted == pytest.approx(100 / 3)
    evaluation = evaluate(read_out(), asking_for(PREDICTIONS, LABELS), [3])
    assert evaluation.retained == 62.5  # (75 + 50) / 2
    assert evaluation.retained_weighted == pytest.approx(400 / 6)
    assert evaluation.forget_classes == (3,)


def test_without_forget_classes_there_is_no_forgotten_accuracy():
    evaluation = evaluate(read_out(), asking_for(PREDICTIONS, LABELS), ())
    assert np.isnan(evaluation.forgotten)
    assert np.isnan(evaluation.forgotten_weighted)
    assert evaluation.retained == pytest.approx((75 + 50 + 0) / 3)


def test_forgotten_classes_without_samples_have_no_accuracy():
    evaluation = evaluate(read_out(), asking_for(PREDICTIONS, LABELS), [2])
    assert np.isnan(evaluation.forgotten)
    assert evaluation.confusion.sum() == len(LABELS)


def test_no_data_have_no_accuracy():
    evaluation = evaluate(read_out(), Data(np.zeros((0, 1, 1, K)), []), [2])
    assert np.isnan(evaluation.per_class).all()
    assert np.isnan(evaluation.retained)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_batches_do_not_change_the_result(batch_size):
    data = asking_for(PREDICTIONS, LABELS)
    evaluation = evaluate(read_out(), data, [3], batch_size=batch_size)
    np.testing.assert_allclose(evaluation.per_class, [75, 50, np.nan, 0])
    outputs = logits(read_out(2.0), data.images, batch_size=batch_size)
    assert type(outputs) is np.ndarray
    np.testing.assert_array_equal(outputs, 2 * data.images.reshape(-1, K))


def test_images_on_a_device_are_evaluated_alike():
    data = asking_for(PREDICTIONS, LABELS)
    moved = Data(jnp.asarray(data.images), data.labels)
    evaluation = evaluate(read_out(), moved, [3], batch_size=3)
    np.testing.assert_allclose(evaluation.per_class, [75, 50, np.nan, 0])


def test_one_program_serves_all_batches_and_all_classifiers():
    images = np.zeros((53, 1, 1, K), np.float32)
    logits(read_out(), images, batch_size=16)
    TRACES.clear()
    for classifier in (read_out(), read_out(3.0)):
        for n in (53, 16, 40):
            logits(classifier, images[:n], batch_size=16)
    assert TRACES == []


def test_few_images_are_not_filled_up_to_a_whole_batch():
    TRACES.clear()
    # Of a shape that no other test has, so that it is traced here.
    logits(read_out(), np.zeros((5, 2, 2, 1), np.float32), batch_size=256)
    assert TRACES == [(8, 2, 2, 1)]


def test_an_evaluation_prints_as_a_table():
    text = str(evaluate(read_out(), asking_for(PREDICTIONS, LABELS), [1, 3]))
    assert text.splitlines() == [
        "retained   75.00 % (over samples 75.00 %)",
        "forgotten  25.00 % (over samples 33.33 %), classes: 1, 3",
        "class           0      1      2      3",
        "accuracy     75.0   50.0    nan    0.0",
    ]


def test_classes_beyond_the_names_of_the_data_print_as_numbers():
    data = asking_for([0, 1], [0, 1])
    named = Data(data.images, data.labels, ("ant", "bee"))
    last = str(evaluate(read_out(), named, [1])).splitlines()[-1]
    assert " ".join(last.split()) == "0: ant 100.0 1: bee 100.0 2 nan 3 nan"


def test_what_cannot_be_evaluated_is_refused():
    data = asking_for(PREDICTIONS, LABELS)
    with pytest.raises(ValueError, match="class 4, which does not exist"):
        evaluate(read_out(), data, [4])
    with pytest.raises(ValueError, match="names all 4 classes"):
        evaluate(read_out(), data, range(K))
    with pytest.raises(TypeError, match="must hold integers"):
        evaluate(read_out(), data, [0.5])
    with pytest.raises(ValueError, match="labels of data .* 0 to 3; .* from 4"):
        evaluate(read_out(), asking_for([0], [4]), [1])
    with pytest.raises(ValueError, match="batch_size must be at least 1; it is 0"):
        evaluate(read_out(), data, [1], batch_size=0)
    with pytest.raises(FloatingPointError, match="not a number for 7 of 7 images"):
        evaluate(read_out(np.nan), data, [1])


def test_class_accuracy_is_the_diagonal_over_the_row_sums():
    confusion = np.array([[3, 1, 0], [0, 0, 0], [1, 1, 6]])
    np.testing.assert_allclose(class_accuracy(confusion), [75, np.nan, 75])


@pytest.mark.parametrize(
    ("labels", "predictions", "error", "sentence"),
    [
        ([0, 1], [0], ValueError, r"their shapes are \(2,\) and \(1,\)"),
        ([0, 2], [0, 0], ValueError, "labels must be classes 0 to 1; .* from 0 to 2"),
        ([0, 1], [0, -1], ValueError, "predictions must be .* from -1 to 0"),
        ([0.0, 1.0], [0, 1], TypeError, "labels must be integers; they are float64"),
    ],
)
def test_wrong_pairs_are_refused(labels, predictions, error, sentence):
    with pytest.raises(error, match=sentence):
        confusion_matrix(np.array(labels), np.array(predictions), 2)


def test_relative_change_is_a_ratio_of_frobenius_norms():
    before = np.array([[3.0, 0.0], [0.0, 4.0]])
    after = before + np.array([[0.3, 0.0], [0.4, 0.0]])
    assert relative_change(before, after) == pytest.approx(0.1, rel=1e-12)
    assert relative_change(before, before) == 0


def test_relative_change_resolves_float64_and_takes_device_arrays():
    before = np.ones((2, 2, 2))
    change = relative_change(before, before + 1e-12)
    assert change == pytest.approx(1e-12, rel=1e-3)
    assert relative_change(jnp.ones(4), 2 * jnp.ones(4)) == 1


def test_relative_change_of_nothing_is_refused():
    with pytest.raises(ValueError, match="before is zero"):
        relative_change(np.zeros(3), np.ones(3))
    with pytest.raises(ValueError, match=r"\(3,\) and \(3, 1\)"):
        relative_change(np.ones(3), np.ones((3, 1)))


def test_nothing_is_said_of_forgotten_classes_where_there_are_none():
    text = str(evaluate(read_out(), asking_for(PREDICTIONS, LABELS), []))
    assert "forgotten" not in text
    assert "nan %" not in text
