"""What a run starts from: model, data, task, layers, loaded and checked."""
