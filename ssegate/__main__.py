"""`python -m ssegate` is the command `ssegate`."""

import sys

from ssegate.cli import main

if __name__ == "__main__":
    sys.exit(main())
