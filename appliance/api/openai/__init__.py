"""OpenAI's wire format, one controller per resource."""
