"""What the lessons read, and in `data.make` how all of it is made.

This file makes `data` a regular package. Without it Python would treat the folder as a namespace package, and any
installed package called `data` would take precedence, even in a checkout. Run the commands from the root of a checkout:
`pyproject.toml` installs `helpers` alone, so no other project ever sees a package `data` of ours.
"""
