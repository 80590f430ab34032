"""How far predictions lie from what was measured: `python -m benchmarks.accuracy SUBCOMMAND FILE.csv [--json]`.

Each subcommand is a module beside this one with `main(arguments) -> int`. A row is predicted from its input columns
alone; a row that cannot be predicted is counted with its reason, never dropped in silence.
"""

from __future__ import annotations

import importlib
import sys

SUBCOMMANDS = {
    "memory": "benchmarks.accuracy_memory",
    "speed": "benchmarks.accuracy_speed",
    "datacenter": "benchmarks.accuracy_datacenter",
}


def main(arguments: list[str]) -> int:
    """Hand over to the subcommand; 2 where there is no such one."""
    if not arguments or arguments[0] not in SUBCOMMANDS:
        print(f"usage: python -m benchmarks.accuracy {{{','.join(SUBCOMMANDS)}}} FILE.csv [--json]", file=sys.stderr)
        return 2
    module = importlib.import_module(SUBCOMMANDS[arguments[0]])
    return int(module.main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
