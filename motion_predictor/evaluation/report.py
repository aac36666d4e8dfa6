"""The figures of an evaluation as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .map_report import format_kinds, format_maps
from .markdown import markdown_table, percent

PREAMBLE = """\
A motion predictor is asked for one step of each handle; then for the {rollout_steps} steps of a whole edit; then for
the motion of everything.

- Handles are judged that are farther than {arrived_at_512:g} px from their targets. Such distances, here and in the
  headings of tables, are in pixels of a picture with a short side of 512; errors are in pixels of the dataset's own.
- A label is the true motion over {label}, where the target lies n frames ahead.
- *Best linear* goes one share of every displacement: the share with the smallest mean error on these very labels,
  found anew for each range of distances. It knows the answers, and no other fixed share can do better.
- A step goes a wrong way if it leads away from its target. Many labels do: they can't be foreseen, and an edit should
  not follow them. So there is a table of the handles whose label is right, with a best linear step of their own.
- In a rollout no handle is held at its target. *Picture warped*: moved by the predicted flows, in place of an edit.
  *Guarded*: no step leads away from its target or beyond it.
- *Whole maps* are judged where something moves: where the true whole way is longer than a fifth of its longest, the
  camera's motion taken out. Means are over the pixels of a sample, then over samples. The whole way is put together
  from {rollout_steps} steps, each from where the last one has led and on the picture as they warp it (*rolled out*),
  or predicted at once (*in one shot*). Distances from the nearest handle are in pixels of a picture with a short side
  of 128.
- Beside a predictor stand maps that know handles and mask, and not the picture: a thin-plate *spline* through the
  handles, and through pins along the mask's border; the best *rigid* and the best *affine* motion of the handles,
  inside the mask. As a next step they go the one share of their way that is best on these very samples; so does the
  *true way*: what is left then is pauses and bends.
- *Size* is the length of what is predicted over that of the true whole way, *cosine* that of the angle to it.
  Intervals are by bootstrap over videos or people.
- *Paths that bend*: those of handles whose true path leads away from the straight line, at its farthest, by more than
  a tenth of its length (its sagitta). The sagittas of rolled out paths should go with it.
"""


def format_table(results: Mapping[str, Any]) -> str:
    """All figures of an evaluation as Markdown, with what they mean.

    Args:
        results (`Mapping[str, Any]`): as `evaluate` returns them.

    Returns:
        `str`: the tables.
    """
    horizon = results["settings"]["horizon"]
    label = f"n / {horizon} frames, rounded up" if horizon else "one frame"
    limits = results["limits"]
    text = ["# Motion prediction\n", PREAMBLE.format(label=label, **limits)]
    text += format_kinds({name: source["maps"] for name, source in results["sources"].items()})
    for name, source in results["sources"].items():
        everything = source["steps"]["all"]
        text += [
            f"## {name}\n",
            f"{source['handles']} handles in {source['samples']} samples of {source['records']} records "
            f"(`{results['settings']['split']}`). The best linear share of the displacement is "
            f"{everything['best_linear_share']:.4f}, that of least squares {everything['least_squares_share']:.4f}.\n",
            _step_table("one step", everything),
            _step_table(
                f"{source['steps']['agreeing']['handles']} handles whose label is right", source["steps"]["agreeing"]
            ),
            _bin_table(source["bins"], everything["steps"]),
        ]
        if source["rollouts"]:
            text.append(_rollout_table(source["rollouts"]))
        if results["settings"]["maps"]:
            text += format_maps(source["maps"])
    return "\n".join(text)


def _step_table(title: str, figures: Mapping[str, Any]) -> str:
    if not figures["handles"]:
        return ""
    header = [
        title,
        "endpoint error, px",
        "more than best linear (95 %)",
        "cosine to the target",
        "wrong ways",
        "wrong ways where the label's is right",
    ]
    rows = [
        [
            name,
            f"{step['endpoint_error']:.3f}",
            f"{step['minus_best_linear']:+.3f} ({low:+.3f} ... {high:+.3f})",
            f"{step['cosine']:.3f}",
            percent(step["wrong_way_rate"]),
            percent(step["wrong_way_rate_of_agreeing"]),
        ]
        for name, step in figures["steps"].items()
        for low, high in [step["minus_best_linear_95"]]
    ]
    rows.append(
        ["labels", "", "", f"{figures['label_cosine']:.3f}", percent(figures["label_wrong_way_rate"]), percent(0.0)]
    )
    return markdown_table(header, rows)


def _bin_table(bins: Mapping[str, Any], names: Iterable[str]) -> str:
    bins = {title: figures for title, figures in bins.items() if figures["handles"]}
    header = ["endpoint error, px"]
    header += [f"{title} px away ({figures['handles']})" for title, figures in bins.items()]
    rows = [[name, *(f"{bins[title]['steps'][name]['endpoint_error']:.3f}" for title in bins)] for name in names]
    return markdown_table(header, rows)


def _rollout_table(rollouts: Mapping[str, Any]) -> str:
    header = ["rollout", "", "handles that arrive", "samples that arrive", "displacement that remains"]
    rows = [
        [
            name,
            kind,
            *(percent(figures[key]) for key in ("arrived", "arrived_samples", "remaining")),
        ]
        for name, kinds in rollouts.items()
        for kind, figures in kinds.items()
    ]
    return markdown_table(header, rows)
