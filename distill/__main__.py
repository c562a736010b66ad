"""`python -m distill` is the `distill` command; child processes are started this way."""

from distill.cli import main

if __name__ == "__main__":
    main()
