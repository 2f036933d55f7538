"""The emitters: each turns the operation table into one generated file."""

import threading

writing = threading.RLock()
"""Held by who writes source while a program runs: `ast.parse` of Python 3.11 confuses threads."""
