"""dynmia: how membership privacy leaks while a model trains."""
from .errors import UserError
from .study import PRESETS, Study
from .engine import train
from .runs import open_run, save_run, study_of
