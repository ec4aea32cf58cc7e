"""Make a trained image classifier forget classes or samples."""

from jaxunlearn.classifier import Classifier as Classifier
from jaxunlearn.classifier import Network as Network
from jaxunlearn.classifier import Preprocess as Preprocess
from jaxunlearn.classifier import freeze as freeze
from jaxunlearn.classifier import thaw as thaw
