"""Train decoders: the loop, its optimisers and schedules, its layout over devices, its checkpoints."""
