"""Pairs as others write and read them: `distill traces import` and `distill traces export`."""
