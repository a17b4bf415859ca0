"""`python -m softprompt` is the command `softprompt`."""

from softprompt.cli import app

if __name__ == "__main__":
    app(prog_name="softprompt")
