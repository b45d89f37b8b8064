"""Start small models from larger ones: their layers, their width, and what it costs."""
