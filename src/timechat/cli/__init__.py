"""The command line: a thin shell around `stages`, one short function a verb."""
