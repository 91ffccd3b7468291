#!/usr/bin/env python
"""The example's command line."""

import os
import sys
from pathlib import Path


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
    if "runserver" not in sys.argv[1:2]:
        os.environ.setdefault("APPLICATION_NAME", "example:worker")
    # tools.local_postgres lies beside this project and isn't part of the installed package.
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
