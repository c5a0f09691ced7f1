"""``python -m tilework``: the command line."""

import sys

if __name__ == "__main__":  # processes that are spawned import this module too
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))  # Python puts the current folder in front of the standard library
    from tilework.cli import main

    main(prog_name="tilework")
