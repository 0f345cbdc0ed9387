"""How requests end, on real servers that are real processes: what is promised is in `endings.py`, as data."""
