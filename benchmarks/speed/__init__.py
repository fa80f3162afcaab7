"""How fast laplace-fiber is, measured against plain alternatives in the same process.

``python -m benchmarks.speed --help`` lists the measurements.
"""
