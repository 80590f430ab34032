"""A fleet of replicas under load, event by event: what no formula says of queues, failures and routing. Pure, seeded.

`simulate` runs a `Fleet` against `Requests`, `summarise` says what came of it, `smallest_fleet` how few replicas do.
"""

from plimsoll.plan.simulate.book import Book, Requests
from plimsoll.plan.simulate.costs import StepCosts, step_costs
from plimsoll.plan.simulate.demand import Lengths, Pattern, closed, drawn
from plimsoll.plan.simulate.fleet import Autoscale, Failures, Fleet, Outage, simulate
from plimsoll.plan.simulate.outcome import Limits, Outcome, Spread, summarise
from plimsoll.plan.simulate.routing import Policy
from plimsoll.plan.simulate.size import smallest_fleet

__all__ = [
    "Autoscale",
    "Book",
    "Failures",
    "Fleet",
    "Lengths",
    "Limits",
    "Outage",
    "Outcome",
    "Pattern",
    "Policy",
    "Requests",
    "Spread",
    "StepCosts",
    "closed",
    "drawn",
    "simulate",
    "smallest_fleet",
    "step_costs",
    "summarise",
]
