"""Move models to and from other libraries: one table of names a family."""
