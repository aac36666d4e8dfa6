"""What the methods of an evaluation are called. No torch here, so that help is answered at once."""

from ..motion.names import MOTION_NAMES

NO_EDIT, TRUE_MOTION = "no edit", "true motion"

METHOD_NAMES = (NO_EDIT, TRUE_MOTION, *(name for name in MOTION_NAMES if name != "predicted"), "predicted")
"""In the order of tables: what is compared with, rivals, and last the paper's."""
