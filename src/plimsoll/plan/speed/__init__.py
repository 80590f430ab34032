"""How fast a candidate will be: a roofline with fitted efficiencies under a closed loop of clients. Pure.

`predict` for one candidate and load, `predict_for` for a plan's; `Predictor` for a table of one's own, and `corrected`
for one that measured runs have taught.
"""

from plimsoll.plan.speed.correction import Level, MeasuredRun, corrected
from plimsoll.plan.speed.load import Load, Timing
from plimsoll.plan.speed.predictor import (
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    Predictor,
    missed,
    predict,
    predict_for,
    shipped,
)

__all__ = [
    "OUTPUT_TOKENS",
    "PROMPT_TOKENS",
    "Level",
    "Load",
    "MeasuredRun",
    "Predictor",
    "Timing",
    "corrected",
    "missed",
    "predict",
    "predict_for",
    "shipped",
]
