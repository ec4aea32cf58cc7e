"""Make a trained image classifier forget classes or samples."""

from jaxunlearn.classifier import Classifier as Classifier
from jaxunlearn.classifier import Network as Network
from jaxunlearn.classifier import Preprocess as Preprocess
from jaxunlearn.classifier import freeze as freeze
from jaxunlearn.classifier import thaw as thaw
from jaxunlearn.inputs import LayerInput as LayerInput
from jaxunlearn.inputs import layer_inputs as layer_inputs
from jaxunlearn.inputs import layer_table as layer_table
from jaxunlearn.moments import Moment as Moment
from jaxunlearn.moments import class_moments as class_moments
from jaxunlearn.moments import second_moments as second_moments
from jaxunlearn.moments import sum_classes as sum_classes
