"""The shapes of other tools, in both directions: Label Studio, Argilla, preference pairs."""
