"""Every framework, in every way of adding the middleware to it."""
