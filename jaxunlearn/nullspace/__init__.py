"""From images to second moments, subspaces and projections."""

from jaxunlearn.nullspace.closed_forms import project_change as project_change
from jaxunlearn.nullspace.closed_forms import reset_toward as reset_toward
from jaxunlearn.nullspace.memory import class_passes as class_passes
from jaxunlearn.nullspace.moments import Moment as Moment
from jaxunlearn.nullspace.moments import class_moments as class_moments
from jaxunlearn.nullspace.moments import second_moments as second_moments
from jaxunlearn.nullspace.moments import sum_classes as sum_classes
from jaxunlearn.nullspace.output_moments import output_moments as output_moments
from jaxunlearn.nullspace.projection import drift as drift
from jaxunlearn.nullspace.projection import leakage as leakage
from jaxunlearn.nullspace.projection import (
    project_to_null_space as project_to_null_space,
)
from jaxunlearn.nullspace.projection import (
    shrink_to_null_space as shrink_to_null_space,
)
from jaxunlearn.nullspace.streaming_qr import row_subspaces as row_subspaces
from jaxunlearn.nullspace.subspace import Subspace as Subspace
from jaxunlearn.nullspace.subspace import merge_subspaces as merge_subspaces
from jaxunlearn.nullspace.subspace import subspaces as subspaces
