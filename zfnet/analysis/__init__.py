"""Analyses: one file for each question that is asked of a network."""
