"""The way out: adapter, merged safetensors and GGUF, each behind the gate."""
