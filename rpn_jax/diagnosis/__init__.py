"""Diagnosis: whether the training input is right, and what a data set is like."""
