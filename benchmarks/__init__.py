"""What the claims about speed are measured with, against programs from PyPI: python -m benchmarks.train --help."""
