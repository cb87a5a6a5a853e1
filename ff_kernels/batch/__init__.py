"""Many prompts, many workers: a file of prompts becomes a folder of clips that any number of runs may fill together."""
