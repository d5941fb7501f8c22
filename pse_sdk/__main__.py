"""`python -m pse_sdk` is `pse`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
