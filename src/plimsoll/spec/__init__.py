"""What the user writes: one YAML file, or the same thing as flags."""
