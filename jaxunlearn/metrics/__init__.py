"""Measures of forgetting. The target of each is the retrained model's value."""

from jaxunlearn.metrics.accuracy import class_accuracy as class_accuracy
from jaxunlearn.metrics.accuracy import confusion_matrix as confusion_matrix
from jaxunlearn.metrics.accuracy import relative_change as relative_change
