"""Train and measure the comparisons: ``python -m fusionframes.ff_kernels.paper --work FOLDER``."""

import sys

from .command import lower_priority, main

if __name__ == "__main__":
    lower_priority()
    sys.exit(main())
