"""What skeino costs, measured beside the usual ways of doing the same: `python -m benchmarks`, `make bench`."""
