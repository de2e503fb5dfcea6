"""What figures allow to be said: intervals, p values, power, agreement, where overfitting began."""
