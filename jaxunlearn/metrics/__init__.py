"""Measures of forgetting, and of images that stand in for retained ones.

The target of a measure of forgetting is the retrained model's value.
"""

from jaxunlearn.metrics.accuracy import class_accuracy as class_accuracy
from jaxunlearn.metrics.accuracy import confusion_matrix as confusion_matrix
from jaxunlearn.metrics.accuracy import relative_change as relative_change
from jaxunlearn.metrics.evaluation import Evaluation as Evaluation
from jaxunlearn.metrics.evaluation import evaluate as evaluate
from jaxunlearn.metrics.proxies import ProxyQuality as ProxyQuality
from jaxunlearn.metrics.proxies import noise_images as noise_images
from jaxunlearn.metrics.proxies import proxy_quality as proxy_quality
from jaxunlearn.metrics.representation import captured_energy as captured_energy
from jaxunlearn.metrics.representation import principal_angles as principal_angles
from jaxunlearn.metrics.representation import subspace_overlap as subspace_overlap
from jaxunlearn.metrics.table import METRICS as METRICS
from jaxunlearn.metrics.table import Judged as Judged
from jaxunlearn.metrics.table import Metric as Metric
from jaxunlearn.metrics.table import measure as measure
