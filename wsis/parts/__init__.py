"""Networks that several papers train as one of their stages; each is also a `--model`."""
