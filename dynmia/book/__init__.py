"""What pages need: released runs and tables and their makers, numbers in print, and the execution of notebooks."""

from .cells import band, cell, decimals, printed, resolved, rounded
from .makers import maker
from .tables import READINGS, RULES, SCORINGS, entries, figures, missing, no_signal, read_table, released

__all__ = [
    "READINGS", "RULES", "SCORINGS", "band", "cell", "decimals", "entries", "figures", "maker", "missing", "no_signal",
    "printed", "read_table", "released", "resolved", "rounded",
]  # fmt: skip
