"""What an edit may end with that its user can put right, in the words of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from motion_predictor.common.command_errors import CommandError, one_line


@contextmanager
def edit_errors() -> Iterator[None]:
    """Turn bad input, numbers that are not finite and a lack of memory into a [`CommandError`]."""
    import torch

    try:
        yield
    except (ValueError, FloatingPointError) as error:
        raise CommandError(one_line(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        raise CommandError(
            "not enough memory on the GPU: try --low-memory, --dtype float16, a smaller --processing-resolution, or "
            "--device cpu."
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # what torch says on the CPU
            raise
        raise CommandError("not enough memory: try a smaller --processing-resolution, or --low-memory.") from error
