"""Weight files: reading them safely, finding out what they hold, loading networks, converting to safetensors."""
