"""Measure the methods' speed and memory on any device."""
