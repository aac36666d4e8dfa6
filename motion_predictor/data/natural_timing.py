"""Curves in time as people move: eased from one position to the next, with pauses, overshoots and returns.

A movement of the head or the hand goes off slowly, is fastest halfway and ends slowly: its path is that of least jerk,
10 s^3 - 15 s^4 + 6 s^5 (Flash and Hogan, 1985). So what is moved in one frame is no fixed share of the displacement.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Knots = Iterator[tuple[float, float]]  # seconds until the next knot, and the value there


def eased_path(knots: Knots, frames: int, fps: float, before: float) -> np.ndarray:
    """Values that move from knot to knot with least jerk, and rest where two knots have one value.

    Args:
        knots (`Knots`): seconds from the knot before, and the value; without end. The value before the first one is 0.
        frames (`int`): how many values are wanted.
        fps (`float`): frames per second.
        before (`float`): seconds that pass before the first frame, so that a path may begin in the middle of a
            movement.

    Returns:
        `np.ndarray` of shape `(frames,)`: float64.

    Example:
        >>> eased_path(iter([(0.4, 1.0), (9.0, 1.0)]), frames=7, fps=10, before=0.0).round(3)
        array([0.   , 0.104, 0.5  , 0.896, 1.   , 1.   , 1.   ])
    """
    ends, values = [0.0], [0.0]
    last = before + (frames - 1) / fps
    while ends[-1] <= last:
        seconds, value = next(knots)
        ends.append(ends[-1] + seconds)
        values.append(value)
    time = before + np.arange(frames) / fps
    number = np.clip(np.searchsorted(ends, time, side="right"), 1, len(ends) - 1)
    begin, end = np.array(ends)[number - 1], np.array(ends)[number]
    share = np.clip((time - begin) / (end - begin), 0, 1)
    eased = share**3 * (10 - 15 * share + 6 * share**2)
    start, stop = np.array(values)[number - 1], np.array(values)[number]
    return np.asarray(start + (stop - start) * eased)


def pose_curve(random: np.random.Generator, frames: int, fps: float, slowness: float = 1.0) -> np.ndarray:
    """Moves between positions in [-1, 1] with pauses, at times with an overshoot, at times back to rest.

    Args:
        random (`np.random.Generator`): the only source of chance.
        frames (`int`): how many values are wanted.
        fps (`float`): frames per second.
        slowness (`float`, *optional*, defaults to 1.0): factor on the seconds that moves take; at 1 they are those of
            a lively talk, half a second or so.
    """

    def knots() -> Knots:
        value = 0.0
        while True:
            target = random.normal(0, 0.15) if random.random() < 0.25 else random.uniform(-1, 1)
            target = float(np.clip(target, -1, 1))
            distance = target - value
            seconds = random.uniform(0.35, 1.2) * (0.5 + 0.5 * abs(distance)) * slowness
            if random.random() < 0.3:
                yield seconds, float(np.clip(value + distance * random.uniform(1.05, 1.2), -1, 1))
                yield random.uniform(0.15, 0.35), target
            else:
                yield seconds, target
            value = target
            if random.random() < 0.5:
                yield random.uniform(0.05, 0.9), value

    return eased_path(knots(), frames, fps, before=random.uniform(0.5, 2.0)) + _sway(random, frames, fps)


def expression_curve(random: np.random.Generator, frames: int, fps: float) -> np.ndarray:
    """Rises from 0 to some strength up to 1 and falls back, with pauses at both ends: a smile, raised brows."""

    def knots() -> Knots:
        while True:
            yield random.uniform(0.1, 0.7), 0.0
            strength = random.uniform(0.3, 1)
            yield random.uniform(0.2, 0.8), strength
            yield random.uniform(0.1, 1.2), strength * random.uniform(0.8, 1)
            yield random.uniform(0.3, 1.0), 0.0

    return eased_path(knots(), frames, fps, before=random.uniform(0, 3.0))


def speech_curve(random: np.random.Generator, frames: int, fps: float) -> np.ndarray:
    """The opening of a mouth that speaks, from 0 to 1: syllables of uneven length and width, and pauses."""

    def knots() -> Knots:
        while True:
            for _ in range(random.integers(2, 9)):
                yield random.uniform(0.08, 0.2), random.uniform(0.15, 0.8)
                yield random.uniform(0.08, 0.2), random.uniform(0.0, 0.25)
            yield 0.15, 0.0
            yield random.uniform(0.1, 0.8), 0.0

    return eased_path(knots(), frames, fps, before=random.uniform(0, 2.0))


def blink_curve(random: np.random.Generator, frames: int, fps: float) -> np.ndarray:
    """How far the eyes are closed, from 0 to 1: quick blinks, and now and then eyes that stay closed a while."""

    def knots() -> Knots:
        while True:
            yield random.uniform(0.2, 3.0), 0.0
            if random.random() < 0.3:
                strength = random.uniform(0.5, 1)
                yield random.uniform(0.2, 0.5), strength
                yield random.uniform(0.1, 1.0), strength
            else:
                yield random.uniform(0.08, 0.12), 1.0
                yield random.uniform(0.02, 0.08), 1.0
            yield random.uniform(0.15, 0.35), 0.0

    return eased_path(knots(), frames, fps, before=random.uniform(0, 3.0))


def _sway(random: np.random.Generator, frames: int, fps: float) -> np.ndarray:
    """Nobody holds quite still: slow waves of some hundredths."""
    time = np.arange(frames)[:, None] / fps
    waves = np.sin(2 * np.pi * (random.uniform(0.2, 1.8, 4) * time + random.uniform(0, 1, 4)))
    return np.asarray((waves * random.uniform(0, 0.02, 4)).sum(axis=1))
