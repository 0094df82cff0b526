"""The miniature checkpoints: training, evaluation and model cards."""
