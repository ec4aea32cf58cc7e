"""A request's operations, memory and time, before it runs."""

from jaxunlearn.planning.prediction import abstract_classifier as abstract_classifier
from jaxunlearn.planning.prediction import plan as plan
from jaxunlearn.planning.records import LayerPlan as LayerPlan
from jaxunlearn.planning.records import Plan as Plan
from jaxunlearn.planning.records import Request as Request
from jaxunlearn.planning.records import StagePlan as StagePlan
