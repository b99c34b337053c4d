import signal
import sys

# `python -m` is about to run a command: until common.cli.run_main, Ctrl-C ends it without the traceback of an import.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
