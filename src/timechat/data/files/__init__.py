"""What a file is, told by looking, and its items one by one."""
