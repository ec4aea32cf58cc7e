"""Unlearning methods: frozen dataclasses of hyper-parameters with one `__call__`."""

from jaxunlearn.methods.bad_teacher import BadTeacher as BadTeacher
from jaxunlearn.methods.baseline import Baseline as Baseline
from jaxunlearn.methods.boundary import BoundaryExpand as BoundaryExpand
from jaxunlearn.methods.boundary import BoundaryShrink as BoundaryShrink
from jaxunlearn.methods.covarnav import CovarNav as CovarNav
from jaxunlearn.methods.descent import Descent as Descent
from jaxunlearn.methods.descent import ProjectedDescent as ProjectedDescent
from jaxunlearn.methods.edit import Edit as Edit
from jaxunlearn.methods.erase_concept import EraseConcept as EraseConcept
from jaxunlearn.methods.fine_tune import FineTune as FineTune
from jaxunlearn.methods.fine_tune import L1Sparse as L1Sparse
from jaxunlearn.methods.fisher import Fisher as Fisher
from jaxunlearn.methods.forget import Sweep as Sweep
from jaxunlearn.methods.forget import forget as forget
from jaxunlearn.methods.forget import forget_task as forget_task
from jaxunlearn.methods.forget import sweep as sweep
from jaxunlearn.methods.gradient_ascent import GradientAscent as GradientAscent
from jaxunlearn.methods.gradient_ascent import NegGradPlus as NegGradPlus
from jaxunlearn.methods.kodge import Kodge as Kodge
from jaxunlearn.methods.last_layers_reset import LastLayersReset as LastLayersReset
from jaxunlearn.methods.layerwise_teacher import LayerwiseTeacher as LayerwiseTeacher
from jaxunlearn.methods.mask_head import MaskHead as MaskHead
from jaxunlearn.methods.projected_gradient import (
    ProjectedGradient as ProjectedGradient,
)
from jaxunlearn.methods.random_labels import Delete as Delete
from jaxunlearn.methods.random_labels import RandomLabels as RandomLabels
from jaxunlearn.methods.random_labels import SalUn as SalUn
from jaxunlearn.methods.relabel import (
    nearest_retained_labels as nearest_retained_labels,
)
from jaxunlearn.methods.relabel import (
    random_retained_labels as random_retained_labels,
)
from jaxunlearn.methods.relabel import retained_probabilities as retained_probabilities
from jaxunlearn.methods.relabel import runner_up_labels as runner_up_labels
from jaxunlearn.methods.reset_and_distill import ResetAndDistill as ResetAndDistill
from jaxunlearn.methods.retrain import Retrain as Retrain
from jaxunlearn.methods.rules import NotForgotten as NotForgotten
from jaxunlearn.methods.scrub import SCRUB as SCRUB
from jaxunlearn.methods.ssd import SSD as SSD
from jaxunlearn.methods.unprojected import Unprojected as Unprojected
from jaxunlearn.methods.unsc import UNSC as UNSC
from jaxunlearn.methods.unsir import UNSIR as UNSIR

by_name: dict[str, type] = {
    "covarnav": CovarNav,
    "unsc": UNSC,
    "layerwise-teacher": LayerwiseTeacher,
    "reset-and-distill": ResetAndDistill,
    "unprojected": Unprojected,
    "retrain": Retrain,
    "fine-tune": FineTune,
    "gradient-ascent": GradientAscent,
    "neg-grad-plus": NegGradPlus,
    "random-labels": RandomLabels,
    "boundary-shrink": BoundaryShrink,
    "boundary-expand": BoundaryExpand,
    "fisher": Fisher,
    "salun": SalUn,
    "ssd": SSD,
    "scrub": SCRUB,
    "bad-teacher": BadTeacher,
    "unsir": UNSIR,
    "l1-sparse": L1Sparse,
    "delete": Delete,
    "kodge": Kodge,
    "projected-gradient": ProjectedGradient,
    "erase-concept": EraseConcept,
    "last-layers-reset": LastLayersReset,
    "mask-head": MaskHead,
}
