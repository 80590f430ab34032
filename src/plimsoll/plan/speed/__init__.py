"""How fast a candidate will be: a roofline with fitted efficiencies under a closed loop of clients. Pure.

`predict` for one candidate and load; `Predictor` for a table of one's own or one that measured runs have corrected.
"""

from plimsoll.plan.speed.load import Load, Timing
from plimsoll.plan.speed.predictor import OUTPUT_TOKENS, PROMPT_TOKENS, Predictor, predict, shipped

__all__ = ["OUTPUT_TOKENS", "PROMPT_TOKENS", "Load", "Predictor", "Timing", "predict", "shipped"]
