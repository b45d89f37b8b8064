"""Show results: tables, charts and pages."""
