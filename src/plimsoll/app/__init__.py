"""Use cases: plan, up, down, status, chat. Settings are resolved once and passed explicitly."""
