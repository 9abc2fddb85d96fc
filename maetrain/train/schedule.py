"""Learning rate as a pure function of the step."""

from math import cos, pi


def warmup_cosine(step: int, peak: float, warmup_steps: int, total_steps: int, floor: float = 0.01) -> float:
    """Linear from peak / warmup_steps up to `peak`, then half a cosine down to `floor * peak` at the last step."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps - 1, 1)
    return peak * (floor + (1 - floor) * 0.5 * (1 + cos(pi * min(progress, 1.0))))


def warmup_poly(step: int, peak: float, warmup_steps: int, total_steps: int, power: float = 0.9) -> float:
    """Linear from peak / warmup_steps up to `peak`, then peak * (1 - progress)^power, which ends just above 0.

    nnU-Net's decay (Isensee et al. 2021), with a warm-up.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * (1 - min(progress, 1.0)) ** power
