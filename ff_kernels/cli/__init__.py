"""The command line ``fusionframes``."""
