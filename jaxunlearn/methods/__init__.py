"""Unlearning methods: frozen dataclasses of hyper-parameters with one `__call__`."""

from jaxunlearn.methods.covarnav import CovarNav as CovarNav
from jaxunlearn.methods.descent import Descent as Descent
from jaxunlearn.methods.descent import ProjectedDescent as ProjectedDescent
from jaxunlearn.methods.forget import Sweep as Sweep
from jaxunlearn.methods.forget import forget as forget
from jaxunlearn.methods.forget import forget_task as forget_task
from jaxunlearn.methods.forget import sweep as sweep
from jaxunlearn.methods.relabel import (
    nearest_retained_labels as nearest_retained_labels,
)
from jaxunlearn.methods.relabel import (
    random_retained_labels as random_retained_labels,
)
from jaxunlearn.methods.relabel import retained_probabilities as retained_probabilities
from jaxunlearn.methods.relabel import runner_up_labels as runner_up_labels
from jaxunlearn.methods.retrain import Retrain as Retrain
from jaxunlearn.methods.unprojected import Unprojected as Unprojected
from jaxunlearn.methods.unsc import UNSC as UNSC

by_name: dict[str, type] = {
    "covarnav": CovarNav,
    "unsc": UNSC,
    "unprojected": Unprojected,
    "retrain": Retrain,
}
