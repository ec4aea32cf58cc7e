"""What is to be forgotten: labelled images, and the request made on them."""

from jaxunlearn.tasks.classes import check_classes as check_classes
from jaxunlearn.tasks.classes import check_leaves_some as check_leaves_some
from jaxunlearn.tasks.classes import class_numbers as class_numbers
from jaxunlearn.tasks.data import Data as Data
from jaxunlearn.tasks.data import check_data as check_data
from jaxunlearn.tasks.data import split_by_class as split_by_class
from jaxunlearn.tasks.data import split_by_index as split_by_index
from jaxunlearn.tasks.long_tail import check_imbalance as check_imbalance
from jaxunlearn.tasks.long_tail import long_tailed as long_tailed
from jaxunlearn.tasks.task import Task as Task
