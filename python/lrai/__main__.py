"""`python -m lrai` is the command `lrai`."""

import sys

from lrai.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
