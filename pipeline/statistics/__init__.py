"""Confidence intervals of a metric and its drop, from the same samples before and after."""
