"""Networks that several methods train in a stage; each is also a `--model`."""
