"""Keeps every series short enough to be browsed, whatever the number of steps: MLflow's pages slow down above it."""

from collections.abc import Callable, Mapping

MOST_POINTS = 1000

Log = Callable[[Mapping[str, float], int], None]


def thinned(log: Log, last_step: int, most_points: int = MOST_POINTS) -> Log:
    """A tracker's `metrics` that hands on at most `most_points` points of each series; most_points > 1.

    The steps 0..last_step are cut into most_points - 1 parts of equal length. Of each part a series keeps its first
    point, and that of last_step is kept besides. So the steps alone decide, and a series that is logged more rarely
    than that keeps all its points.
    """
    num_parts = most_points - 1
    last_part: dict[str, int] = {}

    def thinned_log(metrics: Mapping[str, float], step: int) -> None:
        part = min(step * num_parts // (last_step + 1), num_parts - 1)
        chosen = {k: v for k, v in metrics.items() if part > last_part.get(k, -1) or step == last_step}
        last_part.update(dict.fromkeys(chosen, part))
        if chosen:
            log(chosen, step)

    return thinned_log
