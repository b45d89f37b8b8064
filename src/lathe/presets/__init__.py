"""Published facts, each with its source: shapes and devices as TOML, runs as CSV."""
