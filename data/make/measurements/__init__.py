"""Measurements on real GPUs, the forecasts that they are compared with, and the README's section about both."""
