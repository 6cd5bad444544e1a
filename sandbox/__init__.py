"""A labelled stand-in for paid providers: OpenAI's wire format on a real socket, text from the local model."""
