"""What makes a step cheaper, or steps fewer: measured on every model, and tried in every offload mode."""
