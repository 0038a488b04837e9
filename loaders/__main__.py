"""`python -m loaders`: every loader, what it does, and whether it can be used here."""

import sys

from loaders.backends import BACKENDS


def main() -> int:
    """Prints the table."""
    widest = max(map(len, BACKENDS))
    for name, backend in BACKENDS.items():
        missing = backend.missing()
        print(f"{name:<{widest}}  {'yes' if missing is None else 'no '}  {backend.summary}")
        if missing is not None:
            print(f"{'':<{widest}}       {missing}")
    print("\nLOADER=auto chooses among those that can be used here and says why.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
