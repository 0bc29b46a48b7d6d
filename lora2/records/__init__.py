"""Run folders and runs.csv: no other room reads or writes them."""
