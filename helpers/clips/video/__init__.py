"""Video files: what is in one, its frames, and how new frames are joined to it without harming its own."""
