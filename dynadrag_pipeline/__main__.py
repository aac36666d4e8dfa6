"""`python -m dynadrag_pipeline` is the command `dynadrag`."""

import sys

from dynadrag_pipeline.cli import main

sys.exit(main())
