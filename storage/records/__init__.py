"""Records of a run as JSON, read with checks of their fields."""
