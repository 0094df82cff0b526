"""Recording a stage: the tape, the cost of its operations, the allocators' rounding, and replays of repeated calls."""
