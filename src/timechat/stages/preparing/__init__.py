"""Files of rows become a folder of clean, split conversations: `prepare` and `show`."""
