"""Start, watch, restart and stop engine processes; what runs is kept in SQLite."""
