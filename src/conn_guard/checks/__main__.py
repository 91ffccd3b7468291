"""``python -m conn_guard.checks`` prints the reference page."""

import sys

from conn_guard.checks.page import page

sys.stdout.write(page())
