"""What made an engine fail: its log, read for the root error, with cause and fix where we know them."""

from plimsoll.engines.diagnosis.explain import Diagnosis, Telling, explain
from plimsoll.engines.diagnosis.signatures import Signature, signatures

__all__ = ["Diagnosis", "Signature", "Telling", "explain", "signatures"]
