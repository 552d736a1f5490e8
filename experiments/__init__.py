"""One module for each figure and table of the paper; `run.py` is the command."""
