"""Training a classifier: the one to unlearn from, and the one retrained without."""

from jaxunlearn.training.fitting import fit as fit
from jaxunlearn.training.recipe import Recipe as Recipe
