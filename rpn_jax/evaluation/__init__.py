"""Evaluation: proposals over a split, their figures, and explanations of what was missed."""
