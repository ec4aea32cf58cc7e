"""Images of given classes, drawn out of a classifier by optimising over its inputs."""

from jaxunlearn.inversion.optimisation import invert as invert
from jaxunlearn.inversion.prior import ImagePrior as ImagePrior
from jaxunlearn.inversion.progress import InversionError as InversionError
from jaxunlearn.inversion.terms import Terms as Terms
from jaxunlearn.inversion.terms import feature_distance as feature_distance
from jaxunlearn.inversion.terms import inversion_terms as inversion_terms
