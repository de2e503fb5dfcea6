"""The studio: the pages of `timechat serve`, and the routes that only they use.

The chat itself goes through OpenAI's routes like any client's. `pages` sends the files in `static`;
`models`, `chats`, `labels` and `runs` answer them, on what lies on the `desk`.
"""
