"""What single chapters of the book need: tables, figures and verdicts, on top of the pipeline in :mod:`dynmia`."""
