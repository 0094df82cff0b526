"""How everything in `data/` is made: the scenes, the sample clips, the miniature checkpoints and their truth."""
