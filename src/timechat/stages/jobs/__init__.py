"""Fine-tuning jobs out of the ledger, each worked on by one child process."""
