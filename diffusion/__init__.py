import common  # noqa: F401
