"""The staged product: from a pretrained DeiT to an artifact that met its budget."""
