"""`python -m tvmq` is `tvmq`."""

from tvmq.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit()
