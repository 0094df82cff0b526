"""The renderer of machine clips, and the sample clips drawn with it."""
