"""The decoder: its weights, its cache, its loss, and generation with it."""
