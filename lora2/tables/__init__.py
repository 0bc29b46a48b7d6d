"""runs.csv -> tables, figures and pages."""
