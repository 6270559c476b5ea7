"""ChatGLM-6B, ChatGLM2-6B and ChatGLM3-6B on today's transformers, without remote code."""
