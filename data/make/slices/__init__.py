"""How the records of sliced runs and the picture of the largest videos are made."""
