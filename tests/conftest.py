"""Flags of the suite."""


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="how often test_kills.py kills each trainer (long: 100)")
