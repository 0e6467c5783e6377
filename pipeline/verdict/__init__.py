"""From measurements to a verdict: intervals, gates, report."""
