"""Read facts off the world: this machine, model files, hubs."""
