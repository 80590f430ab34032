"""Engines of stated speed for tests of the simulator."""

from plimsoll.plan.simulate import StepCosts


def costs(*, sequences=8, chunk=64, decode=1.0, context=0.0, prompt=0.25, **more):
    """Steps of `decode` seconds and prompts at `prompt` seconds a token."""
    return StepCosts(
        decode_s=[0.0] + [decode] * sequences,
        context_s=[0.0] + [context] * sequences,
        prefill_s=[prompt * tokens for tokens in range(chunk + 1)],
        **more,
    )
