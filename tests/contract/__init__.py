"""The contract of every metadata store: the same tests on each backend, then what is particular to one."""
