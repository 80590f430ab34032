"""The plan: from facts and a spec to a verdict, a ledger, findings and a layout. Pure functions, no I/O."""
