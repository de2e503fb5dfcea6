"""What a run is, whatever is done with it: its record, inputs, checkpoints and versions."""
