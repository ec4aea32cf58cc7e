"""Many requests on one classifier: one pass of statistics, one compiled program."""

from jaxunlearn.sweeping.record import Sweep as Sweep
from jaxunlearn.sweeping.run import sweep as sweep
