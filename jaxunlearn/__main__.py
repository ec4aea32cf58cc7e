"""`python -m jaxunlearn`: the command line."""

import sys

from jaxunlearn.cli import main

sys.exit(main())
