"""Inference: generates text on vLLM in this process, or on any OpenAI-compatible provider."""
