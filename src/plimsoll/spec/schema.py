"""The JSON Schema of a spec, for editors: `python -m plimsoll.spec.schema > docs/spec.schema.json`."""

from __future__ import annotations

import json
import sys
from typing import Any

from plimsoll.spec.deployment import Spec


def spec_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the spec, generated from the models; their docstrings are the descriptions."""
    schema = Spec.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Plimsoll spec"}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(spec_schema(), indent=2) + "\n")
