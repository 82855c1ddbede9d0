"""Measuring the product: no part of it, and imported by the command line alone."""
