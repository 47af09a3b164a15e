"""The methods: `--model NAME` is the module `wsis.models.NAME`, one file, one paper."""
