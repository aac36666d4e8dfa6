"""Write the pages that are made from the code: `options.md` from the settings, `api.md` from docstrings.

python docs/make_pages.py          # write them
python docs/make_pages.py --check  # only say whether they are up to date
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from dynadrag_pipeline import (
    BaseMotionSource,
    DragInstruction,
    DragIteration,
    DragSession,
    DragSettings,
    DynaDragPipeline,
    DynaDragPipelineOutput,
    EditView,
    Motion,
    MotionPredictorModel,
    MotionSource,
    guarded_motion,
    load_instruction,
)
from dynadrag_pipeline.content import ContentLocations
from dynadrag_pipeline.dift import dift_features, find_points
from dynadrag_pipeline.drag_result import DragResult
from dynadrag_pipeline.drag_state import DragState, DragStep
from dynadrag_pipeline.modular_blocks import DynaDragBlocks
from dynadrag_pipeline.motion.line_search import LineSearchMotion
from dynadrag_pipeline.motion.path import PathMotion
from dynadrag_pipeline.motion.predicted import PredictedMotion
from dynadrag_pipeline.motion.straight import StraightMotion
from dynadrag_pipeline.motion.tracked import TrackedMotion
from dynadrag_pipeline.preview import DragPreview, preview_drag
from dynadrag_pipeline.settings import PRESETS, SettingsInForce, settings_in_force
from dynadrag_pipeline.visualization import contact_sheet, draw_points, draw_trajectories, flow_to_image, save_gif
from motion_predictor.common.options import options_table

FOLDER = Path(__file__).parent

OPTIONS_HEAD = """\
# Options

Made from `dynadrag_pipeline/settings.py` by `python docs/make_pages.py`.

Every option is a keyword of `DynaDragPipeline.__call__`, an input of the modular blocks, and an option of `dynadrag
edit`, where `_` is `-` and `None` is `none`. What holds, where several are said: a keyword, then `settings=`, then
`preset=`, then what the checkpoint recommends, then the default below. Where the default is the paper's, its section
is named.

Presets: {presets}.
"""

API_HEAD = """\
# API

Made from docstrings by `python docs/make_pages.py`. Everything here is imported from `dynadrag_pipeline` unless its
name says otherwise. The options of an edit are in [options.md](options.md).
"""

SECTIONS: dict[str, dict[Any, tuple[str, ...]]] = {
    "The pipeline": {
        DynaDragPipeline: (
            "__call__",
            "preview",
            "open_session",
            "save_session",
            "load_session",
            "settings_in_force",
            "save_identity_lora",
            "load_identity_lora",
        ),
        DynaDragPipelineOutput: (),
        DragPreview: (),
        preview_drag: (),
        ContentLocations: (),
        DragIteration: (),
        DynaDragBlocks: (),
    },
    "Sessions": {
        DragSession: ("drag", "undo", "image", "content"),
        DragStep: (),
        DragState: (),
        DragResult: (),
    },
    "Settings": {DragSettings: (), settings_in_force: (), SettingsInForce: ("record",)},
    "Motion": {
        MotionSource: ("check", "start", "propose", "locate"),
        BaseMotionSource: (),
        EditView: (),
        Motion: (),
        guarded_motion: (),
        PredictedMotion: (),
        StraightMotion: (),
        PathMotion: (),
        TrackedMotion: (),
        LineSearchMotion: (),
        MotionPredictorModel: ("predict_flow",),
    },
    "Correspondences": {dift_features: (), find_points: ()},
    "Instructions and pictures": {
        DragInstruction: ("from_user",),
        load_instruction: (),
        draw_points: (),
        draw_trajectories: (),
        flow_to_image: (),
        contact_sheet: (),
        save_gif: (),
    },
}


def options_page() -> str:
    """`options.md`."""
    presets = "; ".join(
        "`paper`, which is the paper to the letter"
        if name == "paper"
        else f"`{name}`: {', '.join(f'`{option}={value!r}`' for option, value in values.items())}"
        for name, values in PRESETS.items()
    )
    return f"{OPTIONS_HEAD.format(presets=presets)}\n{options_table(DragSettings)}\n"


def api_page() -> str:
    """`api.md`."""
    parts = [API_HEAD]
    for title, members in SECTIONS.items():
        parts.append(f"## {title}\n")
        for member, methods in members.items():
            parts.append(entry(member, member.__name__, "###"))
            parts += [entry(getattr(member, name), f"{member.__name__}.{name}", "####") for name in methods]
    return "\n".join(parts)


def entry(member: Any, name: str, level: str) -> str:
    """One heading, the signature of a function, and the docstring."""
    home = member.__module__
    where = "" if home.startswith("dynadrag_pipeline") or "." not in home else f" (`{home}`)"
    shown = [f"{level} `{name}`{where}", "", markdown(inspect.getdoc(member) or "")]
    if not inspect.isclass(member):
        names = [each for each in inspect.signature(member).parameters if each not in ("self", "cls")]
        shown[1:1] = ["", f"`{name.rpartition('.')[2]}({', '.join(names[:12])}{', ...' if len(names) > 12 else ''})`"]
    return "\n".join(shown) + "\n"


def markdown(docstring: str) -> str:
    """A docstring in diffusers' style as Markdown: sections in bold, their entries as lists, examples in fences."""
    lines, section = [], ""
    for line in docstring.splitlines():
        heading = re.fullmatch(r"(Args|Attributes|Parameters|Returns|Yields|Raises|Source|Examples?):", line)
        if heading:
            section = heading[1]
            lines.append(f"**{section}**")
            if section in ("Args", "Attributes", "Parameters", "Raises"):
                lines.append("")
        elif section.startswith("Example"):
            lines.append(line.removeprefix("    "))
        elif section in ("Args", "Attributes", "Parameters", "Raises") and re.match(r" {4}\S", line):
            name, _, rest = line.strip().partition(" ")
            lines.append(f"- **{name}** {rest}" if not name.endswith(",") else f"- {line.strip()}")
        elif section in ("Args", "Attributes", "Parameters", "Raises"):
            lines.append(f"  {line.strip()}".rstrip())
        elif section and line.startswith("    "):
            lines.append(line.removeprefix("    "))
        else:
            section = section if line == "" else ""
            lines.append(line)
    return fenced("\n".join(lines))


def fenced(text: str) -> str:
    """Examples that are typed at a prompt, without a fence of their own, in one."""
    parts = re.split(r"(```.*?```)", text, flags=re.S)
    prompt = re.compile(r"((?:^(?:>>> |\.\.\. ).*\n?(?:(?!>>>)\S.*\n?)*)+)", re.M)

    def wrap(found: re.Match[str]) -> str:
        return f"\n```py\n{found[1].rstrip()}\n```\n"

    return "".join(part if part.startswith("```") else prompt.sub(wrap, part) for part in parts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the pages that are made from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing, and exit with 1 if a page is out of date")
    args = parser.parse_args()
    stale = 0
    for name, page in (("options.md", options_page()), ("api.md", api_page())):
        file = FOLDER / name
        if args.check:
            current = file.exists() and file.read_text(encoding="utf-8") == page
            print(f"{file}: {'up to date' if current else 'out of date'}")
            stale += not current
        else:
            file.write_text(page, encoding="utf-8")
            print(f"wrote {file}")
    return int(stale > 0)


if __name__ == "__main__":
    sys.exit(main())
