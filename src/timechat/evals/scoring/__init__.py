"""What an answer is worth: scorers, labels, a judge, and two models' answers side by side."""
