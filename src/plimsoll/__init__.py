"""Plimsoll: plan, launch, front and measure language models on machines of your own."""

__version__ = "0.1.0"
