"""What `scripts/fuzz.py` tries: a module for each kind, whose `case(seed, folder)` makes one case and judges it."""
