"""TimeChat: fine-tune an open language model into your own chatbot, and prove that it got better."""
