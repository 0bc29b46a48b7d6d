"""One run and many: configuration, the driver, provenance. Importing this loads no torch."""
