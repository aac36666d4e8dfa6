"""What type checkers and editors know of the call; mypy reads this file, nobody runs it.

An ignored error that is no error any more is one itself (`warn_unused_ignores`).
"""

from __future__ import annotations

from PIL import Image

from dynadrag_pipeline.pipeline_dynadrag import DynaDragPipeline
from dynadrag_pipeline.session import DragSession


def every_option_has_its_type(pipe: DynaDragPipeline, picture: Image.Image) -> None:
    pipe(picture, [(1, 2)], [(3, 4)], max_iterations=3, supervision_reach=None, motion=[[(2, 3)]], preset="paper")
    pipe(picture, handles=[(1, 2)], targets=[(3, 4)], settings={"max_iterations": 3}, dynamic_selection="first")
    pipe(picture, [(1, 2)], [(3, 4)], max_iterations="3")  # type: ignore[arg-type]
    pipe(picture, [(1, 2)], [(3, 4)], dynamic_selection="best")  # type: ignore[arg-type]
    pipe(picture, [(1, 2)], [(3, 4)], iterations=3)  # type: ignore[call-arg]
    pipe(picture)  # type: ignore[call-arg]


def a_session_is_one(pipe: DynaDragPipeline, picture: Image.Image) -> DragSession:
    pipe.open_session(picture, preview_steps="4")  # type: ignore[arg-type]
    return pipe.open_session(picture, preview_steps=4)
