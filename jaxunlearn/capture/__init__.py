"""What meets every weight, read off the program."""

from jaxunlearn.capture.inputs import LayerInput as LayerInput
from jaxunlearn.capture.inputs import layer_inputs as layer_inputs
from jaxunlearn.capture.layers import layer_table as layer_table
