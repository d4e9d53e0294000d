"""The proof that a killed run equals an undisturbed one."""
