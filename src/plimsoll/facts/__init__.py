"""Facts: what is known of models, devices, hosts and engines, and where it is known from. Data, no decisions."""
