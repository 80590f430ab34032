"""One OpenAI-compatible address in front of every replica."""
