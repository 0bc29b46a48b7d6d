"""Run folders and runs.csv: written and read here alone."""
