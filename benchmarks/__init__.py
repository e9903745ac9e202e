"""Measurements behind the claims about speed, against programs from PyPI: python -m benchmarks.train --help."""
