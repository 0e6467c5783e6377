"""The stages of a run, one function each."""
