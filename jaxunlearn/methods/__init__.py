"""Unlearning methods: frozen dataclasses of hyper-parameters with one `__call__`."""

from jaxunlearn.methods.covarnav import CovarNav as CovarNav
from jaxunlearn.methods.descent import Descent as Descent
from jaxunlearn.methods.descent import ProjectedDescent as ProjectedDescent
from jaxunlearn.methods.retrain import Retrain as Retrain
from jaxunlearn.methods.unprojected import Unprojected as Unprojected
from jaxunlearn.methods.unsc import UNSC as UNSC

by_name: dict[str, type] = {
    "covarnav": CovarNav,
    "unsc": UNSC,
    "unprojected": Unprojected,
    "retrain": Retrain,
}
