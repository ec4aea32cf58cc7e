"""`python -m jaxunlearn`: the command line."""

import sys

from jaxunlearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
