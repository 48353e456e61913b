"""From a manifest to a volume store."""
