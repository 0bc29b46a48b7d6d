"""Make tables, figures and pages from runs.csv."""
