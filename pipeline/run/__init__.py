"""The mechanism of a run: stages' artefacts, their cache, the run directory."""
