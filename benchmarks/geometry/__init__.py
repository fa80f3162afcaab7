"""What posteriors spend on symmetries and kernels of weight space: see ``docs/geometry.md``."""
