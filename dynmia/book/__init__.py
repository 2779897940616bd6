"""What pages need: released runs and tables, figures, numbers in print, and the execution of notebooks."""

from .cells import band, cell, decimals, resolved, rounded

__all__ = ["band", "cell", "decimals", "resolved", "rounded"]
