"""What does `python -m keras_committee.cli` do? The same as `keras-committee`."""

import sys

from keras_committee.cli import main

if __name__ == "__main__":
    sys.exit(main())
