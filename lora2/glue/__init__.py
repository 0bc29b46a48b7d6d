"""GLUE: the table of tasks, their data, tokenisation and metrics. Knows no tuner."""
