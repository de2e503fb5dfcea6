"""One model asked everything, two models set side by side, and the six promises."""
