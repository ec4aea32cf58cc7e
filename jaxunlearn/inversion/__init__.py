"""Images of given classes, drawn out of a classifier by optimising over its inputs."""

from jaxunlearn.inversion.inversion import InversionError as InversionError
from jaxunlearn.inversion.inversion import invert as invert
from jaxunlearn.inversion.objective import ImagePrior as ImagePrior
from jaxunlearn.inversion.objective import inversion_terms as inversion_terms
from jaxunlearn.inversion.start import augmented_images as augmented_images
from jaxunlearn.inversion.step import ImageAdam as ImageAdam
