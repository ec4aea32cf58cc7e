"""Arguments refused in a sentence, before any compute."""

from jaxunlearn.checks.arrays import as_array as as_array
from jaxunlearn.checks.arrays import check_channels as check_channels
from jaxunlearn.checks.arrays import check_finite as check_finite
from jaxunlearn.checks.arrays import check_labels as check_labels
from jaxunlearn.checks.arrays import check_targets as check_targets
from jaxunlearn.checks.arrays import value_range as value_range
from jaxunlearn.checks.values import LARGEST as LARGEST
from jaxunlearn.checks.values import as_integer as as_integer
from jaxunlearn.checks.values import as_number as as_number
from jaxunlearn.checks.values import check_choice as check_choice
from jaxunlearn.checks.values import check_count as check_count
from jaxunlearn.checks.values import check_eager as check_eager
from jaxunlearn.checks.values import check_functions as check_functions
from jaxunlearn.checks.values import check_key as check_key
from jaxunlearn.checks.values import check_nonnegative as check_nonnegative
from jaxunlearn.checks.values import check_optimizer as check_optimizer
from jaxunlearn.checks.values import check_positive as check_positive
from jaxunlearn.checks.values import check_type as check_type
from jaxunlearn.checks.values import is_traced as is_traced
from jaxunlearn.checks.values import short as short
