"""Steps down a loss on new labels, with any optax optimizer."""

from jaxunlearn.descent.budget import CertificateWarning as CertificateWarning
from jaxunlearn.descent.leaks import LeakageWarning as LeakageWarning
from jaxunlearn.descent.unlearning import Result as Result
from jaxunlearn.descent.unlearning import Trace as Trace
from jaxunlearn.descent.unlearning import unlearn as unlearn
