# Tasks for people who work on Plimsoll. `just` lists them.

default:
    @just --list

# An environment with everything, editable.
setup:
    uv sync --all-extras

# What CI runs, in a fresh environment.
ci:
    bash .ci/run

# Linters, types and import contracts.
lint:
    ruff check . && ruff format --check . && mypy && lint-imports

# Plain tests (under a minute).
test:
    pytest

# Tests that start real engines.
test-engines:
    pytest -m engine

# Everything in docs/ that is generated from the code.
docs:
    python -m plimsoll.spec.schema > docs/spec.schema.json
    python -m plimsoll.cli.reference > docs/cli.md
    python -m plimsoll.plan.rules.document > docs/rules.md
    python -m plimsoll.facts.device_table > docs/devices.md
    python -m plimsoll.app.field_notes > docs/field-notes.md
