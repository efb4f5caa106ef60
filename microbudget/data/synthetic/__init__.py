"""Synthetic flowers, speech and pages, for where real data are not at hand."""
