"""The command `dynadrag`, which `python -m dynadrag_pipeline` is too."""

import sys


def run() -> int:
    """Run the command line; an interrupt ends it without a traceback even while it is being imported."""
    try:
        from dynadrag_pipeline.cli import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
