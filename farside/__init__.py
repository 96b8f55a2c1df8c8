"""farside trains long-context reasoning models; every parallel layout is proven equal to one process."""

__version__ = "0.1.0"
