"""`python -m tied` is the command `tied`."""

from tied.cli import main

if __name__ == "__main__":
    main()
