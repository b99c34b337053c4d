"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """One line that names the thing and the cure. Commands print it to stderr and exit with code 2."""
