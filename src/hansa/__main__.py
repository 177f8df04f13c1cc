"""``python -m hansa``: the command line, where ``hansa`` itself is not on the path."""

from hansa.cli import main

if __name__ == "__main__":
    main()
