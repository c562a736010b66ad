"""A teacher's paired traces: made, imported, stored, counted. Imports tasks and serve; nothing heavy at import."""
