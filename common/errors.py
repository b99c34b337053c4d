"""The one exception for mistakes that a user can correct."""


class UserError(Exception):
    """One line that names the problem and the cure. Commands print it to stderr and exit with code 2."""
