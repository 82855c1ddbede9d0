"""Classify pictures on a Raspberry Pi. All that is known of the model stands in model/manifest.json."""
