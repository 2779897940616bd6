"""Training shadow models; torch is loaded when training starts, not before."""

from .run import finish, open_store, train, train_part

__all__ = ["finish", "open_store", "train", "train_part"]
