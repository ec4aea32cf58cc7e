"""Make a trained image classifier forget classes or samples."""

import os
import signal
import sys

if (
    os.path.basename(sys.argv[0]) == "jaxunlearn"
    or (sys.argv[0] == "-m" and "jaxunlearn" in sys.orig_argv)
) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # The command line, which until all below is imported would end in a traceback.
    signal.signal(
        signal.SIGINT,
        lambda *_, os=os: (os.write(2, b"jaxunlearn: interrupted.\n"), os._exit(130)),
    )

from jaxunlearn import augmentation as augmentation
from jaxunlearn import datasets as datasets
from jaxunlearn import methods as methods
from jaxunlearn import metrics as metrics
from jaxunlearn import models as models
from jaxunlearn import training as training
from jaxunlearn.capture import LayerInput as LayerInput
from jaxunlearn.capture import layer_inputs as layer_inputs
from jaxunlearn.capture import layer_table as layer_table
from jaxunlearn.classifier import Classifier as Classifier
from jaxunlearn.classifier import Function as Function
from jaxunlearn.classifier import Network as Network
from jaxunlearn.classifier import Preprocess as Preprocess
from jaxunlearn.classifier import freeze as freeze
from jaxunlearn.classifier import thaw as thaw
from jaxunlearn.descent import Result as Result
from jaxunlearn.descent import Trace as Trace
from jaxunlearn.descent import unlearn as unlearn
from jaxunlearn.inversion import ImageAdam as ImageAdam
from jaxunlearn.inversion import ImagePrior as ImagePrior
from jaxunlearn.inversion import InversionError as InversionError
from jaxunlearn.inversion import augmented_images as augmented_images
from jaxunlearn.inversion import invert as invert
from jaxunlearn.ledger import Entry as Entry
from jaxunlearn.ledger import Ledger as Ledger
from jaxunlearn.ledger import Replay as Replay
from jaxunlearn.ledger import Revived as Revived
from jaxunlearn.methods import SCRUB as SCRUB
from jaxunlearn.methods import SSD as SSD
from jaxunlearn.methods import UNSC as UNSC
from jaxunlearn.methods import UNSIR as UNSIR
from jaxunlearn.methods import BadTeacher as BadTeacher
from jaxunlearn.methods import BoundaryExpand as BoundaryExpand
from jaxunlearn.methods import BoundaryShrink as BoundaryShrink
from jaxunlearn.methods import CovarNav as CovarNav
from jaxunlearn.methods import Delete as Delete
from jaxunlearn.methods import EraseConcept as EraseConcept
from jaxunlearn.methods import FineTune as FineTune
from jaxunlearn.methods import Fisher as Fisher
from jaxunlearn.methods import GradientAscent as GradientAscent
from jaxunlearn.methods import Kodge as Kodge
from jaxunlearn.methods import L1Sparse as L1Sparse
from jaxunlearn.methods import LastLayersReset as LastLayersReset
from jaxunlearn.methods import LayerwiseTeacher as LayerwiseTeacher
from jaxunlearn.methods import MaskHead as MaskHead
from jaxunlearn.methods import NegGradPlus as NegGradPlus
from jaxunlearn.methods import ProjectedGradient as ProjectedGradient
from jaxunlearn.methods import RandomLabels as RandomLabels
from jaxunlearn.methods import ResetAndDistill as ResetAndDistill
from jaxunlearn.methods import Retrain as Retrain
from jaxunlearn.methods import SalUn as SalUn
from jaxunlearn.methods import Sweep as Sweep
from jaxunlearn.methods import Unprojected as Unprojected
from jaxunlearn.methods import forget as forget
from jaxunlearn.methods import nearest_retained_labels as nearest_retained_labels
from jaxunlearn.methods import random_retained_labels as random_retained_labels
from jaxunlearn.methods import retained_probabilities as retained_probabilities
from jaxunlearn.methods import runner_up_labels as runner_up_labels
from jaxunlearn.methods import sweep as sweep
from jaxunlearn.metrics import Audit as Audit
from jaxunlearn.metrics import Evaluation as Evaluation
from jaxunlearn.metrics import ProxyQuality as ProxyQuality
from jaxunlearn.metrics import audit as audit
from jaxunlearn.metrics import evaluate as evaluate
from jaxunlearn.metrics import noise_images as noise_images
from jaxunlearn.metrics import proxy_quality as proxy_quality
from jaxunlearn.models.files import load as load
from jaxunlearn.models.files import save as save
from jaxunlearn.nullspace import Moment as Moment
from jaxunlearn.nullspace import Subspace as Subspace
from jaxunlearn.nullspace import class_moments as class_moments
from jaxunlearn.nullspace import drift as drift
from jaxunlearn.nullspace import leakage as leakage
from jaxunlearn.nullspace import merge_subspaces as merge_subspaces
from jaxunlearn.nullspace import output_moments as output_moments
from jaxunlearn.nullspace import project_change as project_change
from jaxunlearn.nullspace import project_to_null_space as project_to_null_space
from jaxunlearn.nullspace import reset_toward as reset_toward
from jaxunlearn.nullspace import row_subspaces as row_subspaces
from jaxunlearn.nullspace import second_moments as second_moments
from jaxunlearn.nullspace import shrink_to_null_space as shrink_to_null_space
from jaxunlearn.nullspace import subspaces as subspaces
from jaxunlearn.nullspace import sum_classes as sum_classes
from jaxunlearn.parallel import cache_compilations as cache_compilations
from jaxunlearn.tasks import Data as Data
from jaxunlearn.tasks import Task as Task
from jaxunlearn.tasks import long_tailed as long_tailed
from jaxunlearn.tasks import split_by_class as split_by_class
from jaxunlearn.tasks import split_by_index as split_by_index

del os, signal, sys

_PACKAGES = ("augmentation", "datasets", "methods", "metrics", "models", "training")


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("jaxunlearn")
    msg = f"module 'jaxunlearn' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    """The public names; `__version__` last."""
    here = [
        name
        for name, value in globals().items()
        if name in _PACKAGES or not (name[0] == "_" or isinstance(value, type(models)))
    ]
    return [*here, "__version__"]
