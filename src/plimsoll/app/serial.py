"""Plans and errors as JSON and back: what was planned is what runs, what went wrong there is said here."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from plimsoll.errors import GatewayError, LaunchError, PlanError, PlimsollError
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


def error_to_json(error: PlimsollError) -> dict[str, object]:
    """Enough to raise the error again in the process that asked."""
    return {
        "gateway": isinstance(error, GatewayError),
        "message": error.message,
        "hint": error.hint,
        "source": error.source,
        "log": list(error.log) if isinstance(error, LaunchError) else [],
    }


def error_from_json(data: Mapping[str, Any]) -> PlimsollError:
    """The error of `error_to_json`: a GatewayError, or a LaunchError with the engine's last words."""
    if data["gateway"]:
        return GatewayError(data["message"], hint=data["hint"], source=data["source"])
    return LaunchError(data["message"], hint=data["hint"], source=data["source"], log=data["log"])
