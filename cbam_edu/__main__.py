"""`python -m cbam_edu` is `cbam-edu`."""

import sys

from cbam_edu.cli import main

sys.exit(main())
