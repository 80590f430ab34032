"""The plan as JSON and back: `plan.json` is what launch reads, so what was planned is what runs."""

from __future__ import annotations

from functools import cache

from pydantic import TypeAdapter, ValidationError

from plimsoll.errors import PlanError
from plimsoll.plan.types import Plan


@cache
def _adapter() -> TypeAdapter[Plan]:
    return TypeAdapter(Plan)


def plan_to_json(plan: Plan) -> str:
    """The whole plan, one JSON document."""
    return _adapter().dump_json(plan).decode()


def plan_from_json(text: str | bytes) -> Plan:
    """The plan of `plan_to_json`; PlanError if the text is not one."""
    try:
        return _adapter().validate_json(text)
    except ValidationError as problem:
        raise PlanError(
            f"not a plan of this version of Plimsoll: {problem.error_count()} faults, the first: "
            f"{problem.errors()[0]['loc']}: {problem.errors()[0]['msg']}",
            hint="plan again with `plimsoll plan`",
        ) from problem
