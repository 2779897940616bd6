"""The samples: data sets by name or by path, the pool of a study, and which shadow model trains on which sample."""

from .datasets import Dataset, load_dataset
from .pool import Pool, draw_keep, make_pool

__all__ = ["Dataset", "Pool", "draw_keep", "load_dataset", "make_pool"]
