"""Tests of train/auditing/."""
