"""`python -m spai`, the same as the console script `spai`."""

from spai.cli import main

if __name__ == "__main__":
    main()
