"""TimeChat: turn an open model into your own chatbot, and prove that it got better."""
