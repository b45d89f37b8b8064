"""From any text to exactly resumable batches: read, tokenise, store, mix, load, clean."""
