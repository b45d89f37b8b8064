"""Fit, choose and question scaling laws."""
