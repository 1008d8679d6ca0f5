"""The command line ``pyro-sep``."""
