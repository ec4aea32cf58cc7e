"""A network as a pure function of parameters, state and images."""

from jaxunlearn.classifier.classifier import Classifier as Classifier
from jaxunlearn.classifier.classifier import Preprocess as Preprocess
from jaxunlearn.classifier.classifier import freeze as freeze
from jaxunlearn.classifier.classifier import thaw as thaw
from jaxunlearn.classifier.function import Function as Function
from jaxunlearn.classifier.network import Network as Network
