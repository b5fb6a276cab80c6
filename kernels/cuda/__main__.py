"""``python -m kernels.cuda``."""

import sys

from kernels.cuda.report import main

sys.exit(main())
